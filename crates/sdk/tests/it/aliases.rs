//! Every method of the API's reference is found by its name there.

use std::collections::BTreeMap;

/// The methods that change CVMs, as the reference names them.
const METHODS: [&str; 12] = [
    "commitCvmComposeFileUpdate",
    "commitCvmUpdate",
    "confirmCvmPatch",
    "getAvailableOsImages",
    "patchCvm",
    "provisionCvmComposeFileUpdate",
    "refreshCvmInstanceId",
    "refreshCvmInstanceIds",
    "updateCvmResources",
    "updateCvmVisibility",
    "updateOsImage",
    "updatePreLaunchScript",
];

/// The JavaScript client's functions on contracts.
const ON_CHAIN: [&str; 10] = [
    "addComposeHash",
    "addDevice",
    "checkComposeHashAllowed",
    "checkDeviceAllowed",
    "checkOnChainPrerequisites",
    "deployAppAuth",
    "getAllowedDevices",
    "removeComposeHash",
    "removeDevice",
    "setAllowAnyDevice",
];

/// Alias to the public functions that carry it.
fn aliases() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let sources = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let folders = [sources.clone(), sources.join("chain")];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    for file in files.map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
        let text = std::fs::read_to_string(file).unwrap();
        let mut open = Vec::new();
        for line in text.lines().map(str::trim) {
            if let Some(alias) =
                line.strip_prefix("#[doc(alias = \"").and_then(|rest| rest.strip_suffix("\")]"))
            {
                open.push(alias.to_owned());
            } else if let Some(rest) =
                line.strip_prefix("pub fn ").or_else(|| line.strip_prefix("pub async fn "))
            {
                let name = rest.split(['(', '<']).next().unwrap();
                for alias in open.drain(..) {
                    found.entry(alias).or_default().push(name.to_owned());
                }
            }
        }
        assert!(open.is_empty(), "an alias on something that is no public function: {open:?}");
    }
    found
}

#[test]
fn each_method_of_the_reference_is_the_alias_of_one_function() {
    let aliases = aliases();
    for name in METHODS.iter().chain(&ON_CHAIN) {
        assert_eq!(aliases.get(*name).map(Vec::len), Some(1), "{name} of {aliases:#?}");
    }
}

#[test]
fn each_method_of_the_reference_is_in_the_table_of_the_crate() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    let rows: Vec<_> = text.lines().filter(|line| line.starts_with("//! | `")).collect();
    for method in METHODS {
        let row = rows.iter().filter(|row| row.contains(&format!("| `{method}` |"))).count();
        assert_eq!(row, 1, "{method}");
    }
    assert_eq!(rows.len(), METHODS.len());
    // The same table without links is in the handbook.
    let handbook =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/methods.md")).unwrap();
    for row in rows {
        let plain = row.trim_start_matches("//! ").replace("[`", "`").replace("`]", "`");
        assert!(handbook.lines().any(|line| line == plain), "docs/methods.md lacks: {plain}");
    }
}
