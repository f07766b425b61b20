# shellcheck shell=bash
# The rows that scripts/bench prints. Names are for good: results are followed by them.
# A row is made from samples of two keys, by round; `minus` subtracts the plain switch's
# value of the same round.
# shellcheck disable=SC2154

# core_rows: NAME MODE ARGS of each in-process row.
core_rows() {
    cat <<'END'
core-established-udp-256 established udp 256
core-established-udp-16k established udp 16384
core-established-udp-256k established udp 262144
core-established-tcp-256 established tcp 256
core-established-tcp-16k established tcp 16384
core-established-tcp-256k established tcp 262144
core-new-udp new udp
core-new-tcp new tcp
core-classify-10 classify 10
core-classify-1000 classify 1000
END
}

# all_rows: name | unit | key of Moat | key of the peer | minus | goal: ratio at most
all_rows() {
    cat <<'END'
l2-stateful-256|cycles/packet added|l2.moat|l2.ct|l2.plain|0.25
l2-stateful-256-two-zones|cycles/packet added|l2.moat|l2.ct2|l2.plain|
l2-total-256|cycles/packet|l2.moat|l2.ct||
END
    local name mode unit
    while read -r name mode _; do
        case $mode in
        established) unit=cycles/packet ;;
        new) unit=connections/s ;;
        classify) unit=ns/flow ;;
        esac
        printf '%s|%s|%s.moat|%s||\n' "$name" "$unit" "$name" "$([ "$mode" = classify ] || printf '%s.peer' "$name")"
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

peer_version() { "$vswitchd" --version | awk 'NR == 1 {print $NF}'; }

# rows_json: an array of objects from the samples.
rows_json() {
    all_rows | jq -Rn --rawfile samples "$samples" --arg version "$(peer_version)" --arg only "$only" '
        def median: sort | if length == 0 then null else (.[(length - 1) / 2 | floor] + .[length / 2 | floor]) / 2 end;
        def round2: if . == null then null else (. * 100 | round) / 100 end;
        def round3: if . == null then null else (. * 1000 | round) / 1000 end;
        ($samples | split("\n") | map(select(. != "") | split(" ")
            | {key: .[0], round: .[1], value: (.[2:] | join(" "))})) as $all
        # {round: value} of a key
        | def of($key): [$all[] | select(.key == $key and .round != "why")]
            | map({key: .round, value: (.value | tonumber)}) | from_entries;
        def why($key): [$all[] | select(.key == $key and .round == "why") | .value];
        [inputs | split("|") | {name: .[0], unit: .[1], moat: .[2], peer: .[3], plain: .[4], goal: .[5]}
         | select(.name | test($only))
         | . as $row
         | of(.moat) as $m | of(.peer) as $p
         | (if .plain != "" then of(.plain) elif .name == "l2-total-256" then of("l2.plain") else null end) as $base
         | (if .plain != "" then $base else {} end) as $minus
         | [$m | keys[] | select((($row.peer == "") or $p[.] != null) and (($row.plain == "") or $minus[.] != null))] as $rounds
         | [$rounds[] | $m[.] - ($minus[.] // 0)] as $mv
         | (if .peer == "" then [] else [$rounds[] | $p[.] - ($minus[.] // 0)] end) as $pv
         | (if .peer == "" then $mv else [range($rounds | length) | select($pv[.] != 0) | $mv[.] / $pv[.]] end) as $spread_of
         | ([why($row.moat), why($row.peer), why($row.plain)] | add
            | if length == 0 and ($rounds | length) == 0 then ["not measured"] else . end | unique) as $whys
         | ($mv | median) as $mm | ($pv | median) as $pm
         | (if $pm != null and $pm != 0 then $mm / $pm else null end) as $ratio
         | (if .goal == "" then null else .goal | tonumber end) as $goal
         | {name, unit, moat: ($mm | round2),
            peer: (if .peer == "" then null else {name: "OVS conntrack", version: $version, value: ($pm | round2)} end),
            plain: (if $base == null then null else [$base[]] | median | round2 end),
            ratio: ($ratio | round3), runs: ($rounds | length),
            spread: (if ($spread_of | length) == 0 then null else (($spread_of | max) - ($spread_of | min)) / ($spread_of | median | fabs) | round3 end),
            goal: $goal,
            met: (if ($whys | length) > 0 then false elif $goal == null then null else $ratio != null and $ratio <= $goal end)}
         + (if ($whys | length) > 0 then {why: ($whys | join("; "))} else {} end)]'
}

# shellcheck disable=SC2154
print_rows() {
    if [ "$format" = json ]; then
        rows_json
        return
    fi
    {
        printf 'NAME|UNIT|MOAT|PEER|PLAIN|RATIO|SPREAD|RUNS|GOAL|MET\n'
        rows_json | jq -r '.[] | [.name, .unit, .moat, .peer.value, .plain, .ratio,
            (if .spread == null then null else "\(.spread * 100 | round)%" end), .runs,
            (if .goal == null then null else "<= \(.goal)" end),
            (if .met == null then null elif .met then "yes" else "NO" end)]
            | map(if . == null then "-" else tostring end) | join("|")'
    } | column -t -s '|' -R 3,4,5,6,7,8
    rows_json | jq -r '.[] | select(.why) | "\(.name): \(.why)"'
    printf 'PEER is OVS conntrack %s. RATIO is MOAT / PEER, SPREAD its (max - min) / median.\n' "$(peer_version)"
}
