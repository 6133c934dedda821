#!/bin/bash
# in-root.sh ROOT COMMAND...: runs COMMAND as if what is in ROOT lay in /: ROOT/mount is /mount, ROOT/opt/mine is
# /opt/mine beside what /opt has. A link in ROOT brings what it points to. In namespaces of its own: nothing of the
# machine changes, and no rights are needed.
set -euo pipefail

if [ -z "${IN_ROOT:-}" ]; then
  IN_ROOT=$(mktemp -d)
  export IN_ROOT
  trap 'rmdir "$IN_ROOT"' EXIT
  unshare --user --map-root-user --mount bash "$0" "$@"
  exit
fi

root=$1
shift
shopt -s nullglob

bring() { # SOURCE TARGET
  if [ -d "$1" ]; then mkdir -p "$2"; else touch "$2"; fi
  mount --rbind "$(readlink -f "$1")" "$2"
}

mount -t tmpfs none "$IN_ROOT"
for entry in /*; do
  if [ -L "$entry" ]; then
    cp -P "$entry" "$IN_ROOT$entry"
  elif [ -d "$root$entry" ]; then
    mkdir "$IN_ROOT$entry"
    for child in "$entry"/*; do
      [ -e "$root$child" ] || bring "$child" "$IN_ROOT$child"
    done
  else
    bring "$entry" "$IN_ROOT$entry"
  fi
done
for entry in "$root"/*; do
  name=${entry#"$root"}
  if [ -d "$IN_ROOT$name" ]; then
    for child in "$entry"/*; do bring "$child" "$IN_ROOT$name/${child##*/}"; done
  else
    bring "$entry" "$IN_ROOT$name"
  fi
done
new=$IN_ROOT
unset IN_ROOT
exec "$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)" "$new" "$@"
