// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// A wallet of three people, any two of whom can have it make calls, many in one transaction. For rehearsals and tests.
///
/// Two of them approve the id of a batch; then anyone may trigger it, once.
contract Wallet {
    struct Call {
        address to;
        uint256 value;
        bytes data;
    }

    mapping(address person => bool) public isOwner;
    mapping(bytes32 batch => mapping(address person => bool)) public approved;
    mapping(bytes32 batch => uint256) public approvals;
    mapping(bytes32 batch => bool) public executed;

    event Executed(bytes32 batch);

    error NotAnOwner(address person);
    error NotApproved(bytes32 batch);
    error CallFailed(uint256 index);

    constructor(address[3] memory owners) {
        for (uint256 i = 0; i < 3; i++) isOwner[owners[i]] = true;
    }

    receive() external payable {}

    /// `salt` tells two batches of the same calls apart.
    function idOf(Call[] calldata calls, uint256 salt) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), salt, calls));
    }

    function approve(bytes32 batch) external {
        if (!isOwner[msg.sender]) revert NotAnOwner(msg.sender);
        if (approved[batch][msg.sender]) return;
        approved[batch][msg.sender] = true;
        approvals[batch]++;
    }

    function execute(Call[] calldata calls, uint256 salt) external {
        bytes32 batch = idOf(calls, salt);
        if (approvals[batch] < 2 || executed[batch]) revert NotApproved(batch);
        executed[batch] = true;
        for (uint256 i = 0; i < calls.length; i++) {
            (bool success,) = calls[i].to.call{value: calls[i].value}(calls[i].data);
            if (!success) revert CallFailed(i);
        }
        emit Executed(batch);
    }
}
