#!/bin/sh
# Names the places that .clang-format would change; --fix changes them. ops.inc is a table, one operation a line.
set -eu
cd "$(dirname "$0")/.."
# One version only: others format differently.
for clang_format in clang-format-14 clang-format; do
  ! $clang_format --version 2>/dev/null | grep -q 'version 14\.' || break
done
$clang_format --version 2>/dev/null | grep -q 'version 14\.' ||
  { echo "error: clang-format 14 not found (tools/setup.sh installs it)" >&2; exit 1; }
mode='--dry-run --Werror'
[ "${1-}" != --fix ] || mode=-i
git ls-files -z --cached --others --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh' |
  xargs -0 -r sh -c 'for f; do [ ! -e "$f" ] || echo "$f"; done' sh | xargs -r "$clang_format" $mode
