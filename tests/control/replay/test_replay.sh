#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moatctl replay: goldens, options, broken files.
#
#   test_replay.sh MOATCTL MAKE_CAPTURE CASES [--update]
#
# Each check prints a line only if it fails; --update writes the goldens anew.
set -u
export LC_ALL=C TZ=UTC
moatctl=$(realpath "$1")
make=$(realpath "$2")
cases=$(realpath "$3")
update=${4:-}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
unset MOAT_FORMAT
export MOAT_DB=unix:$dir/none MOAT_CTL=$dir/none
failures=0 checks=0

fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$*"
    head -n 5 out | sed 's/^/  out| /'
    head -n 5 err | sed 's/^/  err| /'
}
# run CODE ARGUMENT...: moatctl replay; leaves out and err.
run() {
    local want=$1 got
    shift
    checks=$((checks + 1))
    "$moatctl" replay "$@" >out 2>err </dev/null
    got=$?
    [ "$got" = "$want" ] || { fail "replay $*: exit code $got, not $want"; return 1; }
}
says() { checks=$((checks + 1)); grep -qE -- "$1" err || fail "stderr lacks /$1/"; }
prints() { checks=$((checks + 1)); grep -qE -- "$1" out || fail "output lacks /$1/"; }
json() { checks=$((checks + 1)); jq -es "$1" out >/dev/null 2>&1 || fail "JSON does not satisfy: $1"; }

capture_of() { # FOLDER: its capture's file
    local f
    for f in "$1"/capture.pcap "$1"/capture.pcapng; do
        [ ! -e "$f" ] || { echo "$f"; return; }
    done
    "$make" "$(cat "$1/capture" 2>/dev/null || basename "$1")" >made.pcap
    echo "$dir/made.pcap"
}

test_goldens() {
    local c args n=0
    for c in "$cases"/*/; do
        c=${c%/}
        read -ra args <"$c/args"
        capture=$(capture_of "$c")
        n=$((n + 1))
        checks=$((checks + 1))
        (cd "$c" && "$moatctl" replay policy "$capture" "${args[@]}") >out 2>err </dev/null ||
            fail "$c: exit code $?"
        [ ! -s err ] || fail "$c: wrote to stderr"
        if [ -n "$update" ]; then
            cp out "$c/out"
        else
            diff -u "$c/out" out >err || { fail "$c: differs"; cat err; }
        fi
        # As JSON: an object for each packet and the summary, and the same verdicts.
        (cd "$c" && "$moatctl" --format json replay policy "$capture" "${args[@]}") >out 2>err </dev/null
        jq -s 'length > 1 and all(.[:-1][]; has("number") and has("verdict")) and (.[-1].summary | .packets > 0)' out |
            grep -q true || fail "$c: as JSON"
    done
    [ $n -ge 7 ] || fail "only $n cases"
}

vm=(--mac 52:54:00:00:00:05 --address 10.0.0.5 --address 2001:db8::5 --name web --label role=web)

test_output() {
    run 0 day.moat day.pcap "${vm[@]}" --summary && prints '^25 packets: 0 neither'
    [ "$(grep -c to-vm out)" = 3 ] || fail "--summary prints packets"
    run 0 day.moat day.pcap "${vm[@]}" --refused && [ "$(grep -c ' drop \| reject ' out)" = 6 ] || fail "--refused"
    run 0 day.moat day.pcap "${vm[@]}" --passed && [ "$(grep -c ' allow  ' out)" = 19 ] || fail "--passed"
    run 0 --format json day.moat day.pcap "${vm[@]}"
    json 'length == 26 and .[17].answer == "rst" and .[17].verdict == "reject" and .[17].rule_text == "rule \"no mail\" reject from web to any service tcp 25"
        and .[3].session.local_state == "established" and .[3].by == "session" and .[2].by == "rule" and .[2].flow.dport == 80
        and .[7].reason == "tcp-window" and .[25].summary.sessions == 5 and .[25].summary.answers_rst == 1'
    # Connections that were there before the capture began.
    run 0 day.moat day.pcap "${vm[@]}" --pickup 60
    "$make" day | "$moatctl" replay day.moat - "${vm[@]}" >out2 2>err || fail "from standard input"
    run 0 day.moat day.pcap "${vm[@]}" && { cmp -s out out2 || fail "standard input gives something else"; }
    # Without a MAC it is learnt: the same, but for what comes before the first packet of the VM.
    run 0 day.moat day.pcap "${vm[@]:2}" && { cmp -s out out2 || fail "with a learnt MAC it is something else"; }
    # From the neighbour's side: directions are the other way round.
    run 0 --format json day.moat day.pcap --mac 52:54:00:00:00:06
    json '.[2].direction == "to-vm" and .[3].direction == "from-vm"'
    # Nobody's.
    run 0 day.moat day.pcap --mac 52:54:00:00:00:99 --summary && prints '^25 packets: 23 neither'
}

test_usage() {
    run 2 day.moat day.pcap && says 'whose packets'
    run 2 day.moat && says 'too few arguments'
    run 2 - - "${vm[@]}" && says 'cannot be both'
    run 2 day.moat day.pcap --mac nonsense && says 'no MAC'
    run 2 day.moat day.pcap --mac 01:00:5e:00:00:01 && says 'no MAC of one station'
    run 2 day.moat day.pcap --address 10.0.0.300 && says 'no address'
    run 2 day.moat day.pcap "${vm[@]}" --label x && says 'not KEY=VALUE'
    run 2 day.moat day.pcap "${vm[@]}" --pickup -1 && says 'no number from'
    run 2 day.moat day.pcap "${vm[@]}" --refused --passed && says 'leave nothing'
    run 2 day.moat day.pcap "${vm[@]}" --inventory x && says 'inventory says'
    run 1 none.moat day.pcap "${vm[@]}" && says 'none.moat: No such file'
    run 1 day.moat none.pcap "${vm[@]}" && says 'none.pcap: .*No such file'
    echo 'nonsense' >bad.moat
    run 1 bad.moat day.pcap "${vm[@]}" && says '^bad.moat:1:1: error'
    run 1 day.moat day.moat "${vm[@]}" && says 'unknown file format'
    "$make" wireless >wireless.pcap
    run 1 day.moat wireless.pcap "${vm[@]}" && says 'link type 105 \(IEEE802_11\); EN10MB'
    [ ! -s out ] || fail "it printed something"
}

test_inventory() {
    local name text
    local good='{"networks":[{"name":"n"}],"vms":[{"name":"v","vnics":[{"vnic":"i","network":"n","mac":"52:54:00:00:00:05"}]}]}'
    echo "$good" >inv
    run 0 day.moat day.pcap --inventory inv --summary && prints '^25 packets: 0 neither'
    run 1 day.moat day.pcap --inventory inv --name nobody && says 'has 0 VMs "nobody"'
    run 1 day.moat day.pcap --inventory none && says 'none: No such file'
    while IFS='|' read -r name text; do
        echo "$text" >inv
        run 1 day.moat day.pcap --inventory inv || echo "  ($name)"
        says '^moatctl: inv(:| has)'
    done <<'END'
empty|
no JSON|{
an array|[]
no networks|{"vms":[]}
networks are no list|{"networks":{},"vms":[]}
a network is no object|{"networks":[1],"vms":[]}
no vms|{"networks":[]}
no VM|{"networks":[],"vms":[]}
two VMs|{"networks":[],"vms":[{"name":"a"},{"name":"b"}]}
no vNIC|{"networks":[],"vms":[{"name":"a"}]}
a name that is a number|{"networks":[{"name":1}],"vms":[]}
a network without name|{"networks":[{}],"vms":[]}
two networks of one name|{"networks":[{"name":"n"},{"name":"n"}],"vms":[]}
an address that is none|{"networks":[{"name":"n","subnets":["10.0.0.0/33"]}],"vms":[]}
bits behind the prefix|{"networks":[{"name":"n","subnets":["10.0.0.1/24"]}],"vms":[]}
an unknown network|{"networks":[],"vms":[{"name":"v","vnics":[{"vnic":"i","network":"n","mac":"52:54:00:00:00:05"}]}]}
no MAC|{"networks":[{"name":"n"}],"vms":[{"name":"v","vnics":[{"vnic":"i","network":"n"}]}]}
a bad UUID|{"networks":[],"vms":[{"name":"v","uuid":"1"}]}
a label without value|{"networks":[],"vms":[{"name":"v","labels":{"a":""}}]}
a label that is a list|{"networks":[],"vms":[{"name":"v","labels":{"a":[]}}]}
one vNIC twice|{"networks":[{"name":"n"}],"vms":[{"name":"v","vnics":[{"vnic":"i","network":"n","mac":"52:54:00:00:00:05"},{"vnic":"i","network":"n","mac":"52:54:00:00:00:06"}]}]}
END
    python3 - <<'END' >inv
import json
print(json.dumps({"networks": [{"name": "n"}], "vms": [{"name": "v", "vnics": [
    {"vnic": "i", "network": "n", "mac": "52:54:00:00:00:05", "addresses": ["10.0.0.%d" % i for i in range(1, 30)]}]}]}))
END
    run 1 day.moat day.pcap --inventory inv && says 'too many addresses'
}

# No file may do more harm than to be refused: 0, or 1 with a reason.
survives() { # WHAT FILE
    local got
    checks=$((checks + 1))
    "$moatctl" replay day.moat "$2" "${vm[@]}" >out 2>err </dev/null
    got=$?
    case $got in
    0) [ ! -s err ] || fail "$1: exit code 0 and stderr" ;;
    1) grep -q '^moatctl: ' err || fail "$1: exit code 1 and no reason" ;;
    *) fail "$1: exit code $got" ;;
    esac
}
test_broken() {
    local size n
    size=$(stat -c %s day.pcap)
    for ((n = 0; n < size; n += n < 100 || n > size - 30 ? 1 : 29)); do
        head -c $n day.pcap >broken.pcap
        survives "the first $n bytes" broken.pcap
    done
    # What came before the break was judged, and the message says where it is.
    head -c $((size - 5)) day.pcap >broken.pcap
    run 1 day.moat broken.pcap "${vm[@]}" && says 'broken behind packet 24: truncated' && prints '^24 packets'
    for ((n = 1; n <= 60; n++)); do
        "$make" --spoil $n <day.pcap >broken.pcap
        survives "spoilt with seed $n" broken.pcap
        "$make" --spoil $n <ng.pcapng >broken.pcap
        survives "pcapng spoilt with seed $n" broken.pcap
    done
}

cp "$cases/day/policy" day.moat
"$make" day >day.pcap || exit 1
# The same as pcapng, if a case has one.
ng=$(find "$cases" -name '*.pcapng' | sort | head -n 1)
cp "${ng:-day.pcap}" ng.pcapng
test_goldens
test_output
test_usage
test_inventory
test_broken
[ $failures = 0 ] || { printf '%d of %d checks failed\n' $failures $checks; exit 1; }
printf '%d checks passed\n' $checks
