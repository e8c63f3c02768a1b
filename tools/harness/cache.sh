# shellcheck shell=bash
# The one directory where ./dev keeps what it fetched or made. Sourced by dev and tools/harness/get-packages.
cache_directory() {
  if [ -n "${GUESTD_CACHE:-}" ]; then
    realpath -m -- "$GUESTD_CACHE"
  elif [ "$(id -u)" = 0 ]; then
    echo /var/cache/guestd # root's home is closed to the user that PostgreSQL runs as
  else
    echo "${XDG_CACHE_HOME:-$HOME/.cache}/guestd"
  fi
}
