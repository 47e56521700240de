#!/bin/sh
# tools/fuzz.sh BUILD SECONDS: each fuzz target of BUILD for that long, from the committed corpus; a line for each. What
# it finds new stays in BUILD/corpus, and an input that fails in BUILD: mend the parser and commit that to the corpus.
set -u
failed=0
for target in "$1"/bin/fuzz_*; do
  [ -x "$target" ] || { echo "error: no fuzz target in $1/bin" >&2; exit 1; }
  name=$(basename "$target")
  log=$1/$name.log
  mkdir -p "$1/corpus/$name"
  if "$target" -max_total_time="$2" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$1/$name-" \
    "$1/corpus/$name" "tests/fuzz/corpus/${name#fuzz_}" >"$log" 2>&1; then
    echo "$name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs," \
      "$(sed -n 's/^#.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1) edges, no fault"
  else
    failed=1
    tail -n 40 "$log"
    echo "$name: FAILED, see $log"
  fi
done
exit $failed
