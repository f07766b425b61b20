# shellcheck shell=bash
# The rows that scripts/bench prints. Names are for good: results are followed by them.
# A row is made from samples of two keys, by round; `minus` subtracts the plain switch's
# value of the same round.
# shellcheck disable=SC2154

# core_rows: the in-process rows: name | unit | goal | most rounds | 2-MiB pages | what bench_core
# does, or bench_classify if it begins with that | the peer: what bench_conntrack does, "self NAME"
# (the second figure of the same program), "row NAME" (Moat's figure in that row) or nothing.
# A program that prints several lines has measured several pairs.  Goals with a comma between them
# must all be met.
core_rows() {
    local c n t kind
    for c in udp tcp; do
        for n in 256:256 16k:16384 256k:262144; do
            printf 'core-established-%s-%s|cycles/packet|||64|established %s %s|established %s %s\n' "$c" "${n%:*}" "$c" "${n#*:}" "$c" "${n#*:}"
        done
    done
    for c in udp tcp; do
        printf 'core-one-slot-%s-1k|cycles/packet|ratio<=0.125||64|one-slot %s 1000|one-slot %s 1000\n' $c $c $c
        printf 'core-one-slot-%s-1m|cycles/packet|ratio<=0.0833||170|one-slot %s 1000000|one-slot %s 1000000\n' $c $c $c
    done
    printf 'core-one-slot-udp-10m|cycles/packet|ratio<=1.5||1240|one-slot udp 10000000|row core-one-slot-udp-1m\n'
    for c in udp tcp; do
        printf 'core-new-%s|connections/s|||96|new %s|new %s\n' $c $c $c
    done
    printf 'core-new-1000-rules|connections/s|ratio>=3||340|new-rules|insert udp\n'
    printf 'core-new-stall|us|moat<=5||340|stall|\n'
    for n in 10 1000; do
        printf 'core-classify-%s|ns/flow|||8|classify %s|\n' $n $n
    done
    for n in 1k:1000:100 10k:10000:150 100k:100000:300; do
        IFS=: read -r c n t <<<"$n"
        for kind in sg acl fw ipc; do
            printf 'core-classify-%s-%s|ns/flow|moat<=%s,ratio<=0.667|1|%s|bench_classify flows %s %s 1 %s|self rte_acl\n' $kind "$c" "$t" $((n > 10000 ? 1240 : 340)) $kind "$n" "$runs"
        done
    done
    printf 'core-ruleset-build-10k|ms|moat<=20||8|bench_classify build slowest 10000|\n'
    printf 'memory-ipv4|bytes/session|moat<=96|1|1240|memory 4|memory udp\n'
    printf 'memory-ipv6|bytes/session|moat<=128|1|1240|memory 6|\n'
    printf 'capacity|sessions|moat>=16000000|1|1240|capacity 16777216|\n'
    printf 'ageing-10m|%% of a core|moat<=2||1240|ageing 10000000|\n'
    for t in lookup:1.9 insert:1.7 shared:1.6; do
        printf 'threads-%s|M/s, two threads|ratio>=%s||200|threads %s|self one thread\n' "${t%:*}" "${t#*:}" "${t%:*}"
    done
    for t in syn-flood random fragments cache; do
        printf 'adversarial-%s|cycles/packet|ratio<=2||340|hostile %s|self uniform traffic\n' $t $t
    done
}

# all_rows: name | unit | key of Moat | key of the peer | its name | minus | plain | goal
all_rows() {
    local ct="OVS conntrack" len p goal
    cat <<END
l2-stateful-256|cycles/packet added|l2.moat|l2.ct|$ct|l2.plain|l2.plain|ratio<=0.1429
l2-stateful-256-two-zones|cycles/packet added|l2.moat|l2.ct2|$ct|l2.plain|l2.plain|
l2-kept-256|% of the plain rate|l2.moat.kept|l2.ct.kept|$ct|||moat>=85
l2-total-256|cycles/packet|l2.moat|l2.ct|$ct||l2.plain|
l2-stateful-1m|cycles/packet added|l2m.moat|l2m.ct|$ct|l2m.plain|l2m.plain|ratio<=0.1
l2-kept-1m|% of the plain rate|l2m.moat.kept|l2m.ct.kept|$ct|||moat>=70
END
    for len in 64:60 1500:1514; do
        for p in p50 p999; do
            goal=''
            if [ $p = p999 ]; then goal='added<=5'; fi
            printf 'latency-%s-%s|us round trip|%s|%s|%s||%s|%s\n' "${len%:*}" $p "lat.${len#*:}.moat.$p" "lat.${len#*:}.ct.$p" "$ct" "lat.${len#*:}.plain.$p" "$goal"
        done
    done
    local name unit peer key
    while IFS='|' read -r name unit goal _ _ _ peer; do
        case $peer in
        '') key='' peer='' ;;
        self\ *) key=$name.peer peer=${peer#self } ;;
        row\ *) key=${peer#row }.moat peer=${peer#row } ;;
        *) key=$name.peer peer=$ct ;;
        esac
        printf '%s|%s|%s|%s|%s|||%s\n' "$name" "$unit" "$name.moat" "$key" "$peer" "$goal"
    done < <(core_rows)
}

# wanted NAME-OR-PREFIX: is any row that begins so asked for?
wanted() {
    local name
    while IFS='|' read -r name _; do
        [[ $name != "$1"* ]] || [[ ! $name =~ $only ]] || return 0
    done < <(all_rows)
    return 1
}

# needed NAME: is the row itself asked for, or one whose peer it is?
needed() {
    local name peer
    while IFS='|' read -r name _ _ _ _ _ peer; do
        [[ $name != "$1" && $peer != "row $1" ]] || [[ ! $name =~ $only ]] || return 0
    done < <(core_rows)
    return 1
}

peer_version() { "$vswitchd" --version | awk 'NR == 1 {print $NF}'; }
dpdk_version() { "$vswitchd" --version | awk '$1 == "DPDK" {print $2}'; }

# rows_json: an array of objects from the samples.
rows_json() {
    all_rows | jq -Rn --rawfile samples "$samples" --rawfile missed "$top/tests/bench/missed" --arg version "$(peer_version)" --arg dpdk "$(dpdk_version)" --arg only "$only" '
        def median: sort | if length == 0 then null else (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2 end;
        def round2: if . == null then null else (. * 100 | round) / 100 end;
        def round3: if . == null then null else (. * 1000 | round) / 1000 end;
        ($samples | split("\n") | map(select(. != "") | split(" ")
            | {key: .[0], round: .[1], value: (.[2:] | join(" "))})) as $all
        # why a goal is missed, where that is known
        | ($missed | split("\n") | map(select(test("^[a-z0-9-]+: ")) | capture("^(?<key>[a-z0-9-]+): (?<value>.*)")) | from_entries) as $known
        # {round: value} of a key
        | def of($key): [$all[] | select(.key == $key and .round != "why")]
            | map({key: .round, value: (.value | tonumber)}) | from_entries;
        def why($key): [$all[] | select(.key == $key and .round == "why") | .value];
        [inputs | split("|") | {name: .[0], unit: .[1], moat: .[2], peer: .[3], peer_name: .[4], minus: .[5], plain: .[6], goal: .[7]}
         | select(.name | test($only))
         | . as $row
         | of(.moat) as $m | of(.peer) as $p
         | (if .plain != "" then of(.plain) else null end) as $base
         | (if .minus != "" then of(.minus) else {} end) as $minus
         | [$m | keys[] | select((($row.peer == "") or ($p | length) == 0 or $p[.] != null) and (($row.minus == "") or $minus[.] != null))] as $rounds
         | [$rounds[] | $m[.] - ($minus[.] // 0)] as $mv
         | (if .peer == "" or ($p | length) == 0 then [] else [$rounds[] | $p[.] - ($minus[.] // 0)] end) as $pv
         | (if $pv == [] then $mv else [range($rounds | length) | select($pv[.] != 0) | $mv[.] / $pv[.]] end) as $spread_of
         | ([why($row.moat), why($row.peer), why($row.minus), why($row.plain)] | add
            | if length == 0 and ($rounds | length) == 0 then ["not measured"] else . end | unique) as $whys
         | ($mv | median) as $mm | ($pv | median) as $pm
         | (if $pm != null and $pm != 0 then $mm / $pm else null end) as $ratio
         | (if $base == null then null else [$base[]] | median end) as $plain
         | [.goal | select(. != "") | split(",")[] | capture("^(?<of>[a-z]+)(?<is>[<>]=)(?<value>.*)$") | .value |= tonumber] as $goals
         | {ratio: $ratio, moat: $mm, added: (if $mm == null or $plain == null then null else $mm - $plain end)} as $got
         | (if ($whys | length) > 0 then false elif $goals == [] then null
            else all($goals[]; $got[.of] != null and (if .is == "<=" then $got[.of] <= .value else $got[.of] >= .value end)) end) as $met
         | {name, unit, moat: ($mm | round2),
            peer: (if .peer == "" then null else {name: .peer_name, version: (if .peer_name == "OVS conntrack" then $version elif .peer_name == "rte_acl" then $dpdk else null end), value: ($pm | round2)} end),
            plain: ($plain | round2),
            ratio: ($ratio | round3), runs: ($rounds | length),
            spread: (if ($spread_of | length) == 0 or ($spread_of | median) == 0 then null else (($spread_of | max) - ($spread_of | min)) / ($spread_of | median | fabs) | round3 end),
            goal: $goals[0].value,
            goal_is: (if $goals == [] then null else [$goals[] | "\(.of) \(.is) \(.value)"] | join(" and ") end),
            met: $met}
         + (if ($whys | length) > 0 then {why: ($whys | join("; "))}
            elif $met == false then {why: ($known[.name] // "the goal is missed, and nobody has said why yet")} else {} end)]'
}

# shellcheck disable=SC2154
print_rows() {
    local rows=$TESTBED_DIR/rows.json
    rows_json >"$rows"
    if [ "$format" = json ]; then
        cat "$rows"
        return
    fi
    {
        printf 'NAME|UNIT|MOAT|PEER|PLAIN|RATIO|SPREAD|RUNS|GOAL|MET\n'
        jq -r '.[] | [.name, .unit, .moat, .peer.value, .plain, .ratio,
            (if .spread == null then null else "\(.spread * 100 | round)%" end), .runs, .goal_is,
            (if .met == null then null elif .met then "yes" else "NO" end)]
            | map(if . == null then "-" else tostring end) | join("|")' "$rows"
    } | column -t -s '|' -R 3,4,5,6,7,8
    jq -r '.[] | select(.why) | "\(.name): \(.why)"' "$rows"
    printf 'PEER is OVS conntrack %s, but for core-classify-* (rte_acl) and rows that compare Moat with itself: threads (one thread), adversarial (uniform traffic), -10m (-1m).\n' "$(peer_version)"
    printf 'RATIO is MOAT / PEER, SPREAD its (max - min) / median. Cycles are of the TSC.\n'
    counters_note
}

# Where the machine counts for perf, README.md says how to look; here it is only said if it does not.
counters_note() {
    if command -v perf >/dev/null && perf stat -x, -e cycles true 2>&1 | grep -qE '^[0-9]+,,cycles'; then
        printf 'This machine has a PMU: perf stat -e cycles,instructions,cache-misses works on the programs of tests/bench.\n'
    else
        printf 'No instructions per cycle and no cache misses: perf finds no PMU on this machine.\n'
    fi
}
