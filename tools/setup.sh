#!/bin/sh
# Installs the Debian packages that are missing: what the build and its tests need, and on demand ("tools/setup.sh bench
# full") the libraries t2l-bench compares with, and what .ci/full needs besides. Asks for nothing that is there already.
set -eu

packages="g++ make cmake python3 clang-format-14 catch2 libfmt-dev libboost-program-options-dev libboost-context-dev
          nlohmann-json3-dev libyaml-cpp-dev libpcre2-dev libicu-dev zlib1g-dev"
for group; do
  case $group in
    bench) packages="$packages libopenblas-dev libdnnl-dev" ;;
    full) packages="$packages clang-14 libclang-rt-14-dev libomp-14-dev" ;;
    *) echo "error: tools/setup.sh knows the groups bench and full, not '$group'" >&2 && exit 2 ;;
  esac
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "tools/setup.sh: not a Debian system; the equivalents of these must be installed by hand:" $packages >&2
  exit 0
fi
installed=" $(dpkg-query -W -f '${db:Status-Status}=${Package} ' $packages 2>/dev/null || true)"
missing=
for package in $packages; do
  case $installed in *" installed=$package "*) ;; *) missing="$missing $package" ;; esac
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "error: install as root:$missing" >&2; exit 1; }
  as_root=sudo
fi
echo "tools/setup.sh: installing$missing"
{ $as_root apt-get update -qq &&
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } >/dev/null ||
  { echo "error: apt-get could not install$missing: see its message above" >&2; exit 1; }
