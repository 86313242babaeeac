# shellcheck shell=bash
# What the scripts share. To be sourced from the workspace root.

# Tools that scripts/tools installed; a system-wide one wins.
export PATH="$PATH:$PWD/.tools/py/bin:$PWD/.tools/cargo/bin"

say() { printf '%s\n' "$@"; }
stop() { printf '%s\n' "$@" >&2; exit 1; }
# have PROGRAM: whether it is on the PATH. A function of that name does not count.
have() { type -P "$1" >/dev/null; }

# need_rust: stops with the one command that helps, unless cargo is there.
need_rust() {
  have cargo || stop "Casemate needs a Rust toolchain, and there is no cargo on the PATH. This gets one:" "" \
    "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal && . \"\$HOME/.cargo/env\"" ""
}

# What is to be installed: for people, and as commands.
noted=() commands=() needs_root=""

# note WHAT COMMAND: something to be installed.
note() { noted+=("$1") commands+=("$2"); }

# note_packages PACKAGE...: Debian packages, with their size.
note_packages() {
  have apt-get || stop "Missing: $*. Please install them with your system's package manager."
  local sudo="" size
  [ "$(id -u)" = 0 ] || sudo="sudo "
  size=$(LC_ALL=C apt-get install --assume-no --no-install-recommends -o Debug::NoLocking=1 "$@" 2>/dev/null |
    sed -n 's/^After this operation, \(.*\) of additional disk space.*/\1/p' || true)
  needs_root=1
  note "the Debian packages $* (${size:-size known after apt-get update})" \
    "${sudo}apt-get update -qq && ${sudo}env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $*"
}

# install_noted: lists what was noted, asks once, and installs it.
# YES=1, or no terminal to ask on, is a yes for root only; without rights it prints the commands and stops.
install_noted() {
  [ ${#noted[@]} -gt 0 ] || return 0
  local answer root="" command
  [ "$(id -u)" != 0 ] || root=1
  say "To be installed:" "${noted[@]/#/  }"
  if [ "$root" ] && { [ "${YES:-}" = 1 ] || [ ! -t 0 ]; }; then
    :
  elif [ -t 0 ] && [ "${YES:-}" != 1 ] && { [ "$root" ] || [ ! "$needs_root" ] || have sudo; }; then
    read -r -p "Install this now? [y/N] " answer
    case "$answer" in [yY]*) ;; *) stop "Nothing was installed. Later:" "" "${commands[@]/#/  }" "" ;; esac
  else
    stop "Nobody here can say yes to that. Please run this, then try again:" "" "${commands[@]/#/  }" ""
  fi
  for command in "${commands[@]}"; do eval "$command"; done
  noted=() commands=() needs_root=""
}

# need_packages PACKAGE...: the same for Debian packages alone.
need_packages() {
  [ $# -gt 0 ] || return 0
  note_packages "$@"
  install_noted
}
