#!/bin/bash
# mutants.sh CHAOS [RULE]: chaos against RHONE_BIN (rhone-mutants) with one rule left out after the other. Caught is what
# ends with a violation; a rule that is not caught fails the run.
set -u
chaos=$(realpath "$1") only=${2:-}
cd "$(dirname "$0")" || exit 1
logs=$(mktemp -d "${TMPDIR:-/tmp}/rhone-mutants-XXXXXX")

# The rule, the verdict that has to tell it, and the rounds in which leaving it out matters.
rules='
Freeze    primaries --scenario mutants/freeze.toml
LeaseAge  primaries --scenario mutants/lease-age.toml
Names     loss      --scenario quorum --only power_loss,black_hole --rounds 6
MostWal   loss      --scenario mutants/most-wal.toml
Cover     loss      --scenario mutants/cover.toml
LagGate   loss      --scenario mutants/lag-gate.toml
Patience  calm      --scenario calm --rounds 6
'
# What each verdict says (checker.rs, scenario.rs, campaign.rs).
declare -A says=(
    [primaries]='first acknowledgement\)|both acknowledged on one timeline'
    [loss]='acknowledged rows lost after|values lost|, [1-9][0-9]* lost,|[1-9][0-9]* beyond the bound'
    [calm]='(moved|promoted) in noise'
)
missed=0
while read -r rule word how; do
    [ -n "$rule" ] || continue
    [ -z "$only" ] || [ "$only" = "$rule" ] || continue
    verdict="not caught"
    for seed in 1 2 3; do
        log="$logs/$rule-$seed"
        # shellcheck disable=SC2086
        RHONE_MUTANT=$rule "$chaos" run $how --seed "$seed" >"$log" 2>&1 </dev/null
        # What is violated otherwise, such as a cluster that is never whole on a busy machine, shows nothing.
        if found=$(grep -m1 -E "^VIOLATED: .*(${says[$word]})" "$log"); then
            verdict="caught with seed $seed after $(grep -cE '^ *[0-9]+ +[0-9.]+ s ' "$log") rounds: ${found:0:160}"
            break
        fi
        grep -q '^error: ' "$log" && verdict="not tried: the cluster did not start"
    done
    [ "${verdict:0:6}" = caught ] || missed=1
    printf '%-10s %s\n' "$rule" "$verdict"
done <<<"$rules"
echo "logs: $logs"
exit $missed
