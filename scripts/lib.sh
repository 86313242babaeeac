# shellcheck shell=bash
# What the scripts share. To be sourced from the workspace root.

# Tools that scripts/tools installed; a system-wide one wins.
export PATH="$PATH:$PWD/.tools/py/bin:$PWD/.tools/cargo/bin"

say() { printf '%s\n' "$@"; }
stop() { printf '%s\n' "$@" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# need_rust: stops with the one command that helps, unless cargo is there.
need_rust() {
  have cargo || stop "Casemate needs a Rust toolchain, and there is no cargo on the PATH. This gets one:" "" \
    "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal && . \"\$HOME/.cargo/env\"" ""
}

# need_packages PACKAGE...: installs Debian packages, after listing them with their size and asking once.
# YES=1, or no terminal to ask on, is a yes for root only; without rights it prints the command and stops.
need_packages() {
  [ $# -gt 0 ] || return 0
  have apt-get || stop "Missing: $*. Please install them with your system's package manager."
  local sudo="" size
  [ "$(id -u)" = 0 ] || sudo="sudo "
  local update="${sudo}apt-get update -qq"
  local install="${sudo}apt-get install -y --no-install-recommends $*"
  size=$(LC_ALL=C apt-get install --assume-no --no-install-recommends -o Debug::NoLocking=1 "$@" 2>/dev/null |
    sed -n 's/^After this operation, \(.*\) of additional disk space.*/\1/p' || true)
  say "To be installed: the Debian packages $* (${size:-size known after apt-get update})"
  if [ "$(id -u)" = 0 ] && { [ "${YES:-}" = 1 ] || [ ! -t 0 ]; }; then
    :
  elif [ -t 0 ] && [ "${YES:-}" != 1 ] && { [ "$(id -u)" = 0 ] || have sudo; }; then
    local answer
    read -r -p "Install them now? [y/N] " answer
    case "$answer" in [yY]*) ;; *) stop "Nothing was installed. Later: $install" ;; esac
  else
    stop "This needs root. Please run it, then try again:" "" "  $update && $install" ""
  fi
  $update
  DEBIAN_FRONTEND=noninteractive $install
}
