#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moatctl against a real ovsdb-server with the Moat schema and a canned engine.
#
#   test_moatctl.sh MOATCTL CANNED_ENGINE SCHEMA GOLDENS [--update]
#
# Each check prints a line only if it fails; --update writes the goldens anew.
set -u
export LC_ALL=C
moatctl=$(realpath "$1")
canned=$(realpath "$2")
schema=$(realpath "$3")
goldens=$(realpath "$4")
docs=$(realpath "$(dirname "$0")/../../../control/cli")
update=${5:-}
dir=$(mktemp -d)
cd "$dir" || exit 1
unset MOAT_PRIVATE_KEY MOAT_CERTIFICATE MOAT_CA_CERT MOAT_FORMAT
export MOAT_DB=unix:$dir/db.sock MOAT_CTL=$dir/no-engine
failures=0 checks=0

pids=()
cleanup() {
    local p
    for p in "${pids[@]}" ${engine:-}; do kill "$p" 2>/dev/null; done
    [ ! -e "$dir/db.pid" ] || kill -CONT "$(<"$dir/db.pid")" 2>/dev/null
    [ ! -e "$dir/db.pid" ] || kill "$(<"$dir/db.pid")" 2>/dev/null
    rm -rf "$dir"
}
trap cleanup EXIT

fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$*"
    sed 's/^/  out| /' out
    sed 's/^/  err| /' err
}

# run CODE COMMAND...: runs moatctl, leaves out and err, checks the exit code.
run() {
    local want=$1 got
    shift
    checks=$((checks + 1))
    "$moatctl" "$@" >out 2>err </dev/null
    got=$?
    [ "$got" = "$want" ] || { fail "moatctl $*: exit code $got, not $want"; return 1; }
}
ok() { run 0 "$@"; }
# refused REGEX COMMAND...: fails with 1 and says so, prints nothing else.
refused() {
    local regex=$1
    shift
    run 1 "$@" || return
    grep -qE -- "$regex" err || fail "moatctl $*: stderr lacks /$regex/"
}
usage() {
    local regex=$1
    shift
    run 2 "$@" || return
    grep -qE -- "$regex" err || fail "moatctl $*: stderr lacks /$regex/"
    [ ! -s out ] || fail "moatctl $*: wrote to stdout"
}
# prints REGEX: the last output has it.
prints() { checks=$((checks + 1)); grep -qE -- "$1" out || fail "output lacks /$1/"; }
lacks() { checks=$((checks + 1)); ! grep -qE -- "$1" out || fail "output has /$1/"; }
# json FILTER COMMAND...: the output is one JSON document and FILTER holds.
json() {
    local filter=$1
    shift
    ok --format json "$@" || return
    jq -es 'length == 1' out >/dev/null 2>&1 || { fail "moatctl $*: not one JSON document"; return; }
    jq -e "$filter" out >/dev/null 2>&1 || fail "moatctl $*: JSON does not satisfy: $filter"
}
db() {
    ovsdb-client -t 10 transact "$MOAT_DB" "[\"Moat\",$1]" >tx 2>&1 && ! grep -q '"error"' tx && return
    printf 'ovsdb-client: %s\n' "$(<tx)"
    exit 1
}
start_db() {
    rm -f db.conf db.sock
    ovsdb-tool create db.conf "$schema" &&
        ovsdb-server db.conf --remote="punix:$dir/db.sock" --unixctl="$dir/db.ctl" --pidfile="$dir/db.pid" \
            --no-chdir --detach --log-file="$dir/db.log" -vconsole:off 2>/dev/null || exit 1
}
eventually() { # COMMAND...: within 10 s
    local i
    checks=$((checks + 1))
    for ((i = 0; i < 100; i++)); do
        "$@" && return 0
        sleep 0.1
    done
    : >out
    fail "did not happen in time: $*"
}

# --- help and usage -----------------------------------------------------------

golden() { # FILE COMMAND...
    local file=$goldens/$1
    shift
    ok "$@" || return
    if [ -n "$update" ]; then
        cp out "$file"
    else
        diff -u "$file" out >err || fail "moatctl $*: differs from $file"
    fi
}
test_help() {
    local family
    golden help.txt --help
    golden help.txt help
    for family in status engine host network vm slot session rule event policy migration trace capture replay; do
        golden "help-$family.txt" help "$family"
        ok "$family" --help
    done
    ok vm add --help
    prints '^Usage: moatctl vm add'
    ok --version
    prints '^moatctl [0-9]'
    usage 'no command "nonsense"' help nonsense
    usage 'which command'
    usage '"nonsense" is no command' nonsense
    usage 'There are: vm list' vm nonsense
    usage 'unknown option --nonsense' vm list --nonsense
    usage 'unknown option -z' vm list -z
    usage '--vm is no option of this command' host list --vm x
    usage 'takes no argument' session list --count=3
    usage 'needs an argument' session list --vm
    usage 'neither table nor json' --format xml vm list
    usage 'no number of seconds' --timeout 0 vm list
    usage 'no number of seconds' --timeout 1x vm list
    usage 'too few arguments' vm show
    usage 'too many arguments: "b"' vm show a b
    usage 'no number from' session list --port 70000
    usage 'no address or prefix' session list --peer 10.0.0.0/33
    usage 'is none of none' session list --state nonsense
    usage 'no number from' session list --proto nonsense
    usage '--vnic is missing' session flush
    usage 'severity' event list --severity nonsense
    usage 'neither --vm nor' event list --local --vm x
}

# Each command is in the manual and completed; each option is in the manual.
test_docs() {
    local manual command word
    manual=$(sed 's/\\f[BIR]//g; s/\\-/-/g; s/^\.[A-Z]* //; s/["\\]//g; s/ *\[ *\(list\|show\) *\]/ \1/' "$docs/moatctl.8")
    ok --help
    sed -n '/^Commands:/,/^$/s/^  \([a-z ]*[a-z]\)  .*/\1/p' out >commands
    checks=$((checks + 1))
    [ "$(wc -l <commands)" -ge 26 ] || fail "the list of commands"
    while read -r command; do
        checks=$((checks + 2))
        grep -q "^$command" <<<"$manual" || { : >out; fail "not in the manual: $command"; }
        word=${command##* }
        # shellcheck disable=SC2046
        complete_words $([ "$word" = "$command" ] || echo "${command% *}") "" | grep -qx -- "$word" ||
            { : >out; fail "not completed: $command"; }
    done <commands
    for command in $(sed 's/^/help /' commands | cut -d' ' -f1,2 | sort -u | cut -d' ' -f2); do
        ok help "$command"
        for word in $(grep -o -- '--[a-z-]*' out); do
            checks=$((checks + 1))
            grep -q -- "$word" <<<"$manual" || fail "not in the manual: $word"
        done
    done
    if command -v groff >/dev/null; then
        checks=$((checks + 1))
        groff -man -ww -Tutf8 "$docs/moatctl.8" >out 2>err
        [ ! -s err ] || fail "the manual"
    fi
}
# What bash would offer: the last argument is the word under the cursor.
complete_words() {
    PATH=$dir/bin:$PATH bash -c '
        source "$1"
        shift
        compopt() { :; }
        COMP_WORDS=(moatctl "$@") COMP_CWORD=$#
        _moatctl
        printf "%s\n" "${COMPREPLY[@]}"' bash "$docs/moatctl.bash" "$@" 2>&1
}
offers() { # WORDS WORD...: with each of WORDS among what is offered
    local want=$1 word
    shift
    complete_words "$@" >out
    for word in $want; do
        checks=$((checks + 1))
        grep -qx -- "$word" out || fail "completion of \"$*\" lacks $word"
    done
}
test_completion() {
    : >err
    offers 'vm session policy help' ''
    offers 'session' ses
    offers 'web db' vm show ''
    offers 'web db' session --vm ''
    offers 'web' session --vm = w
    offers 'web-0' session --vnic ''
    offers 'web-0' capture --vnic ''
    offers 'trace capture replay' ''
    offers '--vm= --refused --passed --explain' trace --
    offers '--write= --snaplen= --force' capture --
    offers '--mac= --inventory= --summary' replay --
    offers 'blue' network del ''
    offers 'web' vm vnic add ''
    offers 'mac= network=' vm vnic add web web-0 ''
    offers 'blue' vm vnic add web web-0 network = ''
    offers 'web-0' vm vnic del web ''
    offers '--vm= --state= --db= --count' session --
    offers '--wait= --dry-run' policy apply --
    offers 'established' session --state = est
    offers 'json' --format = ''
    offers 'web' vm quarantine ''
    offers '--wait=' vm release --
    offers 'add del' vm vnic ''
    offers 'show replace' engine ''
    : >libmoat-x.so
    offers 'libmoat-x.so' engine replace libmoat-
    MOAT_DB=unix:/none offers 'web' --db = unix : "$dir/db.sock" vm show ''
}

# --- no database ----------------------------------------------------------------

test_unreachable() {
    refused 'cannot reach the Moat database at unix:/none: No such file' --db unix:/none vm list
    refused 'is no remote' --db nonsense vm list
    refused 'Connection refused' --db tcp:127.0.0.1:1 vm list
    refused 'needs a private key: give --private-key' --db ssl:127.0.0.1:1 vm list
    refused 'cannot read a private key "/none"' --db ssl:127.0.0.1:1 --private-key /none vm list
    refused 'cannot reach the engine at .*no-engine' slot list
    refused 'cannot reach the engine' session list
    refused 'cannot reach the engine' rule list
    refused 'cannot reach the engine' event list --local
    refused 'cannot reach the engine' engine show
    refused 'cannot reach the engine' engine replace
    run 1 --db unix:/none status
    prints 'Cannot be reached'
    run 1 --db unix:/none --format json status
    checks=$((checks + 1))
    jq -e '.engine.reachable == false and .cluster.reachable == false and (.engine.error | length > 0)' out \
        >/dev/null || fail "status as JSON with nothing there"
    # A server of another database, and one that says nothing.
    echo '{"name":"Other","version":"1.0.0","tables":{"T":{"columns":{"a":{"type":"string"}}}}}' >other.schema
    ovsdb-tool create other.conf other.schema
    ovsdb-server other.conf --remote="punix:$dir/other.sock" --unixctl="$dir/other.ctl" --pidfile="$dir/other.pid" \
        --no-chdir --detach --log-file="$dir/other.log" -vconsole:off 2>/dev/null || exit 1
    refused 'no database "Moat"' --db "unix:$dir/other.sock" vm list
    kill "$(<other.pid)"
    kill -STOP "$(<db.pid)"
    refused 'no answer' --timeout 1 vm list
    kill -CONT "$(<db.pid)"
}

# --- TLS --------------------------------------------------------------------------

certificate() { # NAME CA
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj "/CN=$1" -keyout "$1.key" -out "$1.pem" \
        ${2:+-CA "$2.pem" -CAkey "$2.key"} >openssl.log 2>&1 || { cat openssl.log; exit 1; }
}
test_tls() {
    local port
    certificate ca && certificate server ca && certificate client ca
    certificate stranger
    ovsdb-tool create tls.conf "$schema"
    ovsdb-server tls.conf --remote=pssl:0:127.0.0.1 --private-key=server.key --certificate=server.pem \
        --ca-cert=ca.pem --unixctl="$dir/tls.ctl" --pidfile="$dir/tls.pid" --no-chdir --detach \
        --log-file="$dir/tls.log" -vconsole:off 2>/dev/null || exit 1
    pids+=("$(<tls.pid)")
    port=$(sed -n 's/.*0:127.0.0.1: listening on port \([0-9]*\).*/\1/p' tls.log)
    set -- --db "ssl:127.0.0.1:$port" --private-key client.key --certificate client.pem --ca-cert ca.pem
    json '. == []' "$@" vm list
    ok "$@" vm add web
    json '.[0].name == "web"' "$@" vm list
    refused 'cannot reach' --timeout 2 "$@" --ca-cert stranger.pem vm list
    refused 'cannot reach' --timeout 2 "$@" --private-key stranger.key --certificate stranger.pem vm list
    refused 'cannot read' "$@" --ca-cert none.pem vm list
    kill "${pids[@]}"
    pids=()
}

# --- networks and VMs ---------------------------------------------------------

test_network() {
    json '. == []' network list
    ok network add blue subnet=10.0.0.0/24 subnet=fd00::/64 gateway=10.0.0.1 dhcp=10.0.0.2 router=fe80::1
    ok network add red subnet=10.0.0.0/24
    json 'length == 2 and .[0] == {name:"blue", subnets:["10.0.0.0/24","fd00::/64"], gateways:["10.0.0.1"],
        dhcp_servers:["10.0.0.2"], metadata_servers:[], routers:["fe80::1"], vnics:0}' network list
    ok network
    prints '^NAME +SUBNETS'
    prints '^blue +10.0.0.0/24, fd00::/64'
    refused 'there is a network "blue" already' network add blue
    refused 'there is no network "green"' network del green
    usage 'bits behind its length; is 10.0.0.0/24 meant' network add green subnet=10.0.0.1/24
    usage 'is no IPv4 or IPv6 prefix' network add green subnet=10.0.0.0/33
    usage 'is no IPv4 or IPv6 address' network add green gateway=10.0.0.0/24
    usage 'is none of subnet' network add green colour=green
    usage 'is not key=value' network add green green
    usage 'must start with' network add -- -green
    usage 'longer than 63' network add "$(printf 'x%.0s' {1..64})"
    ok network add "$(printf 'x%.0s' {1..63})"
    ok network del "$(printf 'x%.0s' {1..63})"
}
test_vm() {
    json '. == []' vm list
    ok vm add web label role=web label env=prod host=A,B
    ok vm add db label role=db uuid=11111111-2222-3333-4444-55555555555A
    json 'map(.name) == ["db","web"] and .[0].uuid == "11111111-2222-3333-4444-55555555555a"
        and .[1].labels == {role:"web", env:"prod"} and .[1].hosts == ["A","B"]' vm list
    refused 'VM "web" has that name already' vm add web
    refused 'VM "db" has that UUID already' vm add db2 uuid=11111111-2222-3333-4444-55555555555a
    usage 'is no UUID' vm add x uuid=1
    usage 'letters, digits' vm add 'a b'
    usage 'letters, digits' vm add $'a\e[31m'
    usage 'not key=value' vm add x label role
    usage 'letters, digits' vm add x label 'role=we b'
    usage 'not understood' vm add x nonsense
    refused 'there is no VM "nobody"' vm show nobody
    refused 'there is no VM "nobody"' vm set nobody label a=b
    refused 'there is no VM "nobody"' vm del nobody
    ok vm set web unlabel env label role=front label tier=1 host=
    json '.labels == {role:"front", tier:"1"} and .hosts == [] and .vnics == []' vm show web
    ok vm set web label role=web unlabel tier name=www
    json '.name == "www"' vm show www
    ok vm set www name=web
    ok vm show 11111111-2222-3333-4444-55555555555a
    prints '^Name: +db$'
}
test_vnic() {
    ok vm vnic add web web-0 mac=52:54:00:00:00:0A network=blue address=10.0.0.5 address=FD00:0::5 allow=10.0.0.200
    ok vm vnic add db db-0 mac=52:54:00:00:00:0b network=blue address=10.0.0.6
    # The same address in another network is another one.
    ok vm vnic add db db-1 mac=52:54:00:00:00:0a network=red address=10.0.0.5
    json '.vnics == [{vnic:"web-0", network:"blue", mac:"52:54:00:00:00:0a", addresses:["10.0.0.5","fd00::5"],
        allowed_addresses:["10.0.0.200"], holder:null, epoch:0, enforced_quarantine:null}]' vm show web
    refused 'address 10.0.0.5 belongs to vNIC "web-0" of VM "web"' \
        vm vnic add db x mac=52:54:00:00:00:0c network=blue address=10.0.0.5
    refused 'address fd00::5 belongs to vNIC "web-0"' \
        vm vnic add db x mac=52:54:00:00:00:0c network=blue address=fd00:0:0::5
    refused 'MAC 52:54:00:00:00:0a belongs to vNIC "web-0"' vm vnic add db x mac=52:54:00:00:00:0a network=blue
    refused 'vNIC "web-0" already: it belongs to VM "web"' vm vnic add db web-0 mac=52:54:00:00:00:0c network=blue
    refused 'in no subnet' vm vnic add db x mac=52:54:00:00:00:0c network=blue address=10.0.1.1
    refused 'there is no network "green"' vm vnic add db x mac=52:54:00:00:00:0c network=green
    refused 'there is no VM "nobody"' vm vnic add nobody x mac=52:54:00:00:00:0c network=blue
    usage 'group address' vm vnic add db x mac=53:54:00:00:00:0c network=blue
    usage 'is no MAC' vm vnic add db x mac=52:54:00:00:00 network=blue
    usage 'mac= is missing' vm vnic add db x network=blue address=10.0.0.9
    usage 'no address of one station' vm vnic add db x mac=52:54:00:00:00:0c network=blue address=224.0.0.1
    usage 'unspecified' vm vnic add db x mac=52:54:00:00:00:0c network=blue address=0.0.0.0
    refused 'in use: by vNIC' network del blue
    refused 'has no vNIC "web-0"' vm vnic del db web-0
    refused 'has no vNIC "none"' vm vnic del db none
    ok vm vnic del db db-1
    json '.vnics | map(.vnic) == ["db-0"]' vm show db
    ok network del red
    # Several at once want one address: one gets it.
    local i got=0
    for i in 1 2 3 4 5 6 7 8; do ok vm add "r$i"; done
    for i in 1 2 3 4 5 6 7 8; do
        "$moatctl" vm vnic add "r$i" "r$i-0" "mac=52:54:00:00:01:0$i" network=blue address=10.0.0.77 2>"race$i" &
        pids[i]=$!
    done
    for i in 1 2 3 4 5 6 7 8; do wait "${pids[i]}" && got=$((got + 1)); done
    pids=()
    checks=$((checks + 1))
    [ $got = 1 ] || fail "$got vNICs got one address"
    json 'map(select(.addresses | index("10.0.0.77"))) | length == 1' vm list
    for i in 1 2 3 4 5 6 7 8; do ok vm del "r$i"; done
    json 'length == 2' vm list
}

# The host's reports are written by hand here; moatd's are tried in test_moatd.sh.
test_quarantine() {
    local waiting
    refused 'there is no VM "nobody"' vm quarantine nobody
    refused 'there is no VM "nobody"' vm release nobody
    usage 'no number from' vm quarantine web --wait -1
    usage 'too few arguments' vm quarantine
    json 'all(.quarantine == false)' vm list
    ok vm quarantine web
    prints '^VM "web": quarantine ordered$'
    json 'map(select(.quarantine) | .name) == ["web"]' vm list
    ok vm list
    prints '^web .* yes +web-0'
    run 1 --format json status # there is no engine
    checks=$((checks + 1))
    jq -e '.cluster.vms_quarantined == 1' out >/dev/null || fail "status does not count it"
    ok vm show web
    prints '^Quarantine: +yes$'
    prints ' not reported$'
    json '. == {vm:"web", quarantine:true}' vm quarantine web
    json '. == {vm:"web", quarantine:false, vnics:0, vnics_enforcing:0}' vm release web --wait 5
    json 'all(.quarantine == false)' vm list
    ok vm release web --wait 5
    prints '^no host has a vNIC of it$'

    # Its host does not answer, does not manage, does it.
    db '{"op":"update","table":"VNIC","where":[["vnic_id","==","web-0"]],"row":{"holder":"A"}}'
    refused 'written, but after 1 s 1 of 1 vNICs' vm quarantine web --wait 1
    checks=$((checks + 1))
    grep -q 'vNIC "web-0" on host "A": has not reported' err || fail "who is late"
    json 'map(select(.quarantine) | .name) == ["web"]' vm list
    db '{"op":"insert","table":"Enforced","row":{"host":"A","vnic_id":"web-0","state":"active","quarantine":"operator","problem":"it hurts"}}'
    refused 'written, but' vm quarantine web --wait 1
    checks=$((checks + 1))
    grep -q 'on host "A": it hurts' err || fail "why it is late"
    db '{"op":"update","table":"Enforced","where":[["vnic_id","==","web-0"]],"row":{"problem":"","quarantine":"policy"}}'
    ok vm show web
    prints ' no rule names it$'
    "$moatctl" vm quarantine web --wait 20 >waited 2>&1 &
    waiting=$!
    sleep 0.3
    checks=$((checks + 2))
    kill -0 $waiting 2>/dev/null || { cp waited out; fail "did not wait"; }
    db '{"op":"update","table":"Enforced","where":[["vnic_id","==","web-0"]],"row":{"quarantine":"operator"}}'
    wait $waiting && grep -q '^1 of 1 vNICs enforce it$' waited || { cp waited out; fail "waiting for a host"; }
    ok vm show web
    prints ' by an operator$'
    refused 'written, but' vm release web --wait 1
    db '{"op":"update","table":"Enforced","where":[["vnic_id","==","web-0"]],"row":{"quarantine":""}}'
    ok vm release web --wait 5
    # Another host's report counts for nothing.
    db '{"op":"update","table":"Enforced","where":[["vnic_id","==","web-0"]],"row":{"quarantine":"operator"}},
        {"op":"update","table":"VNIC","where":[["vnic_id","==","web-0"]],"row":{"holder":"B"}}'
    refused 'on host "B": has not reported' vm quarantine web --wait 1
    ok vm release web
    db '{"op":"delete","table":"Enforced","where":[["vnic_id","==","web-0"]]},
        {"op":"update","table":"VNIC","where":[["vnic_id","==","web-0"]],"row":{"holder":["set",[]]}}'
}

# --- hosts ------------------------------------------------------------------------

test_host() {
    db '{"op":"insert","table":"Host","row":{"name":"A","peer_address":"10.1.0.1:6640","version":"0.1.0","started_at":1700000000,"status":["map",[["engine","up"]]],"problems":["map",[["tap vnet0","not behind a slot"]]]}}'
    ok host set A on-missing-policy=block news=allow
    checks=$((checks + 1))
    grep -q 'no host of this version has a setting "news"' err || fail "no warning"
    usage 'neither block nor allow' host set A on-missing-policy=alow
    ok host set A news= x=y
    json '.[0].settings == {"on-missing-policy":"block", x:"y"} and .[0].started_at == "2023-11-14T22:13:20Z"
        and .[0].problems["tap vnet0"] == "not behind a slot"' host list
    refused 'there is no host "Z"' host set Z a=b
    usage 'not key=value' host set A nonsense
    usage 'printable' host set A $'a=\e'
    ok host
    prints '^A +10.1.0.1:6640'
}

# --- policy -----------------------------------------------------------------------

cat >good.moat <<'END'
policy "shop" version 1
group web = vms labelled role=web
group db = vms labelled role=db
tier main {
    rule "web to db" allow from web to db service tcp 5432
}
default drop
END
sed 's/5432/3306/' good.moat >other.moat
cat >bad.moat <<'END'
policy "shop" version 1
group web = vms labelled role=web
tier main {
    rule "one" allow from web to nowhere service tcp 80
    rule "two" permit from web to web
}
END
test_policy() {
    refused 'no policy is applied' policy show
    ok policy check good.moat
    prints 'good.moat: good: policy "shop"'
    refused 'bad.moat:4:[0-9]+: error: ' policy check bad.moat
    checks=$((checks + 1))
    grep -qE 'bad.moat:5:[0-9]+: error: ' err && grep -q 'hint: ' err && grep -q '2 errors' err || fail "not all errors, or no hint"
    run 1 --format json policy check bad.moat
    checks=$((checks + 1))
    jq -e '.ok == false and (.diagnoses | length == 2) and .diagnoses[0].line == 4 and .diagnoses[0].severity == "error"
        and (.diagnoses[0].hint | length > 0)' out >/dev/null || fail "diagnoses as JSON"
    json '.ok and .checked_with_database' policy check good.moat
    ok --db unix:/none policy check good.moat
    checks=$((checks + 1))
    grep -q 'not checked against VMs' err || fail "no word about the missing database"
    refused 'cannot read nonsense: No such file' policy check nonsense
    head -c 1100000 /dev/zero | tr '\0' '#' >big.moat
    refused 'longer than' policy check big.moat

    json '.dry_run and .generation == 1' policy apply good.moat --dry-run
    refused 'no policy is applied' policy show
    ok policy apply good.moat
    prints 'applied policy "shop".* generation 1'
    json '.generation == 1 and .name == "shop" and (.digest | length == 64) and (.applied_by | test("@"))
        and (.applied_at | test("^20.*Z$"))' policy show
    ok policy show
    checks=$((checks + 1))
    cmp -s out good.moat || fail "the text that is shown is not the one that was applied"
    # A bad one leaves the old one.
    refused 'bad.moat: 2 errors; nothing has changed' policy apply bad.moat
    refused 'generation 1 is in force, not 7' policy apply other.moat --if-generation 7
    json '.generation == 1' policy show
    ok policy apply other.moat --if-generation 1
    json '.generation == 2 and (.text | test("3306"))' policy show
    # Only the current one is kept.
    checks=$((checks + 1))
    [ "$(ovsdb-client -f csv --no-headings dump "$MOAT_DB" Moat Policy generation | grep -c '^2$')" = 1 ] || fail "generations in the table"
}
test_policy_stdin() {
    checks=$((checks + 1))
    "$moatctl" policy check - <good.moat >out 2>err || fail "a policy from standard input"
    checks=$((checks + 1))
    "$moatctl" policy fmt <good.moat >out 2>err || fail "fmt from standard input"
    cp out canonical.moat
    ok policy fmt canonical.moat
    checks=$((checks + 1))
    cmp -s out canonical.moat || fail "printing twice changes the text"
    refused 'not in canonical form' policy fmt --check good.moat
    ok policy fmt --check canonical.moat
    cp good.moat inplace.moat
    chmod 640 inplace.moat
    ok policy fmt -i inplace.moat
    checks=$((checks + 1))
    cmp -s inplace.moat canonical.moat && [ "$(stat -c %a inplace.moat)" = 640 ] || fail "fmt -i"
    cp bad.moat badcopy.moat
    refused 'error' policy fmt -i badcopy.moat
    checks=$((checks + 1))
    cmp -s bad.moat badcopy.moat || fail "fmt -i changed a file with errors"
    usage 'needs a file' policy fmt -i
    ok policy base
    prints '^tier base'
    json '.text | test("tier base")' policy base
}
# Many at once: each that says it won has a generation of its own, the rest changed nothing.
test_policy_race() {
    local i won=0 before after
    before=$("$moatctl" --format json policy show | jq .generation)
    for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
        sed "s/5432/$((4000 + i))/" good.moat >"race$i.moat"
        "$moatctl" --format json policy apply "race$i.moat" >"race$i.out" 2>"race$i.err" &
        pids[i]=$!
    done
    for i in 1 2 3 4 5 6 7 8 9 10 11 12; do
        if wait "${pids[i]}"; then
            won=$((won + 1))
        else
            grep -q 'somebody else applied a policy' "race$i.err" || { cp "race$i.err" err; fail "a lost race said something else"; }
        fi
    done
    pids=()
    after=$("$moatctl" --format json policy show | jq .generation)
    checks=$((checks + 1))
    if [ $won = 0 ] || [ "$after" != $((before + won)) ]; then fail "$won won, generation went from $before to $after"; fi
    checks=$((checks + 1))
    [ "$(cat race*.out | jq -s 'map(.generation) | unique | length')" = $won ] || fail "a generation was given twice"
    # The same, surely at once: all expect one generation, so one wins.
    won=0
    for i in 1 2 3 4 5 6; do
        "$moatctl" policy apply "race$i.moat" --if-generation "$after" >/dev/null 2>&1 &
        pids[i]=$!
    done
    for i in 1 2 3 4 5 6; do wait "${pids[i]}" && won=$((won + 1)); done
    pids=()
    checks=$((checks + 1))
    [ $won = 1 ] || fail "$won won one generation"
}
enforced() { # GENERATION
    db '{"op":"update","table":"Enforced","where":[],"row":{"generation":'"$1"',"intended_generation":'"$1"'}}'
}
test_wait() {
    local gen
    gen=$("$moatctl" --format json policy show | jq .generation)
    db '{"op":"insert","table":"Enforced","row":{"host":"A","vnic_id":"web-0","state":"active","generation":'"$gen"',"intended_generation":'"$gen"',"digest":"aa","intended_digest":"aa"}}'
    db '{"op":"insert","table":"Enforced","row":{"host":"B","vnic_id":"old-0","state":"departed","generation":0}}'
    run 1 --format json status
    checks=$((checks + 1))
    jq -e '.cluster | .reachable and .vnics_enforced == 1 and .vnics_different == 0 and .hosts[0].name == "A" and (.problems | length == 1)' out \
        >/dev/null || fail "status of the cluster"
    refused 'vNIC "web-0" on host "A": generation' policy apply good.moat --wait 1
    gen=$((gen + 1))
    json ".generation == $gen" policy show
    run 1 --format json status
    checks=$((checks + 1))
    jq -e '.cluster.differences | length == 1 and .[0].vnic == "web-0" and (.[0].problem | test("has not taken up"))' out \
        >/dev/null || fail "difference of the cluster"
    gen=$((gen + 1))
    (sleep 1; enforced $gen) &
    ok policy apply good.moat --wait 20
    checks=$((checks + 1))
    grep -q "1 of 1 vNICs enforce generation $gen" err || fail "no progress"
    wait
    db '{"op":"update","table":"VNIC","where":[["vnic_id","==","db-0"]],"row":{"holder":"B"}}'
    refused 'vNIC "db-0" on host "B": has not reported' policy apply good.moat --wait 1
    db '{"op":"update","table":"VNIC","where":[["vnic_id","==","db-0"]],"row":{"holder":["set",[]]}}'
    run 1 status
    prints '^HOST '
    prints 'tap vnet0'
}
# What cannot be used with any policy is refused before anything is applied.
test_bad_inventory() {
    local gen
    gen=$("$moatctl" --format json policy show | jq .generation)
    db '{"op":"update","table":"VNIC","where":[["vnic_id","==","db-0"]],"row":{"addresses":"nonsense"}}'
    refused 'nonsense' policy apply good.moat
    json ".generation == $gen" policy show
    db '{"op":"update","table":"VNIC","where":[["vnic_id","==","db-0"]],"row":{"addresses":"10.0.0.6"}}'
}

# --- events and migrations ----------------------------------------------------

event() { # TIME_US SEVERITY VM MESSAGE
    db '{"op":"insert","table":"Event","row":{"host":"A","time_us":'"$1"',"severity":"'"$2"'","kind":"test","vm":"'"$3"'","vnic_id":"'"$3"'-0","message":"'"$4"'","details":["map",[["a","b"]]]}}'
}
test_event() {
    json '. == []' event list
    event 1700000002000000 warning web second
    event 1700000001000000 info db first
    event 1700000003000000 alarm web third
    json 'map(.message) == ["first","second","third"] and .[0].time == "2023-11-14T22:13:21.000000Z" and .[0].details == {a:"b"}' event
    json 'map(.message) == ["third"]' event --limit 1
    json 'map(.message) == ["second","third"]' event --severity warning
    json 'map(.message) == ["first"]' event --vm db
    json 'map(.message) == ["second","third"]' event --vnic web-0
    ok event
    prints '^2023-11-14T22:13:21.000000Z +info +A +db +db-0 +test +first$'
    "$moatctl" --format json event -f --limit 1 >follow 2>follow.err &
    pids+=($!)
    eventually grep -q third follow
    event 1700000004000000 info web fourth
    eventually grep -q fourth follow
    # A server that goes away and comes back is no end, and nothing is told twice.
    kill "$(<db.pid)"
    eventually test ! -e db.sock
    ovsdb-server db.conf --remote="punix:$dir/db.sock" --unixctl="$dir/db.ctl" --pidfile="$dir/db.pid" \
        --no-chdir --detach --log-file="$dir/db.log" -vconsole:off 2>/dev/null
    event 1700000005000000 info web fifth
    eventually grep -q fifth follow
    kill "${pids[@]}"
    wait "${pids[@]}" 2>/dev/null
    pids=()
    checks=$((checks + 1))
    [ "$(jq -r .message follow | tr '\n' ' ')" = "third fourth fifth " ] || { cp follow out; fail "follow"; }
}
test_migration() {
    json '. == []' migration
    refused 'no migration' migration show db
    db '{"op":"insert","table":"Migration","row":{"vnic_id":"db-0","vm":"db","source":"A","destination":"B","epoch":2,"state":"completed","started_at":1700000000,"finished_at":1700000002,"evidence":["map",[["sessions-sent","7"],["sessions-accepted","7"],["sessions-refused","0"],["rounds","3"],["hold-us","12345"],["wait-ms","1.250"],["decided-by","state"],["news","x"]]]}}'
    db '{"op":"insert","table":"Migration","row":{"vnic_id":"web-0","vm":"web","source":"A","destination":"B","epoch":2,"state":"precopy","started_at":1700000010}}'
    json 'length == 2 and .[0].vm == "db" and .[0].duration_s == 2 and .[0].evidence["sessions-sent"] == 7 and .[0].evidence["wait-ms"] == 1.25 and .[0].evidence.news == "x"
        and .[1].duration_s == null and .[1].finished_at == null' migration list
    json 'map(.vm) == ["web"]' migration --vm web
    json 'map(.vm) == ["web"]' migration --limit 1
    ok migration
    prints 'db +db-0 +A +B +2 +completed +2s +7/7 +12.3ms +state$'
    ok migration show db
    prints 'Session records sent: +7$'
    prints 'Source waited for: +1.2ms$'
    prints 'Packets held for: +12.3ms$'
    prints 'news: +x$'
    json '.[0].evidence.rounds == 3' migration show db-0
}

# --- hostile rows ------------------------------------------------------------------

test_hostile() {
    db '{"op":"insert","table":"VM","row":{"name":"evil\u001b[31m\u202e\nrow","vm_uuid":"\u0007","labels":["map",[["a\tb","c\rd"]]]}}'
    ok vm list
    prints 'evil\\x1b\[31m\\u202e\\nrow'
    checks=$((checks + 1))
    ! grep -qP '[\x00-\x09\x0b-\x1f\x7f]' out || fail "control characters reach the terminal"
    checks=$((checks + 1))
    [ "$(wc -l <out)" = 4 ] || fail "a name makes a row"
    json 'any(.name | startswith("evil\u001b[31m"))' vm list
    ok vm del $'\a'
    event 1700000009000000 alarm x '\u001b]0;title\u0007\n2023-01-01T00:00:00.000000Z  info  A  x  x-0  test  forged'
    ok event --vm x
    checks=$((checks + 1))
    [ "$(wc -l <out)" = 2 ] || fail "a message makes a row"
    db '{"op":"insert","table":"Migration","row":{"vnic_id":"m-0","vm":"m","epoch":9223372036854775807,"state":"failed","started_at":-9223372036854775808,"finished_at":9223372036854775807,"evidence":["map",[["hold-us","99999999999999999999"],["wait-ms","1e400"],["rounds","1."],["final-delta","-1"],["\u001b[2J","\u001b[2J"]]]}}'
    json 'map(select(.vm == "m")) | length == 1' migration
    ok migration show m
    checks=$((checks + 1))
    ! grep -qP '[\x00-\x09\x0b-\x1f\x7f]' out || fail "control characters reach the terminal"
    db '{"op":"insert","table":"Host","row":{"name":"H","started_at":9223372036854775807}}'
    json 'map(select(.name == "H"))[0].started_at == null' host list
}

# --- the engine ---------------------------------------------------------------

start_engine() { # GENERATION MODE FILE
    stop_engine
    "$canned" "$dir/engine" "$@" &
    engine=$!
    eventually test -S engine || exit 1
    export MOAT_CTL=$dir/engine
}
stop_engine() {
    [ -z "${engine:-}" ] || { kill "$engine"; wait "$engine" 2>/dev/null; }
    engine=
    rm -f engine
}
test_engine() {
    local gen
    ok policy apply good.moat
    gen=$("$moatctl" --format json policy show | jq .generation)
    start_engine "$gen"
    json '.engine | .reachable and .version == "0.1.0-canned" and .uptime_s == 125 and .sessions_max == 1000000
        and .ports_unclaimed == 1 and .events_lost == 5 and .recovered_sessions == 2 and .unclaimed == "block"' status
    ok status
    prints '^Running for: +2m5s$'
    prints '^Slots: +3 of 256$'
    prints '^Engines before it: +0$'
    json 'length == 4 and map(.vnic) == ["db-0","db-1","web-0",null] and .[0].state == "active" and .[0].running
        and .[0].generation == '"$gen"' and .[1].state == "blocked" and .[1].generation == null
        and .[3].state == "unclaimed" and .[3].path == "/run/nobody.sock"' slot list
    json 'map(.vnic) == ["db-0","db-1"]' slot list --vm db
    refused 'no slot of VM "nobody"' slot list --vm nobody
    refused 'no slot of vNIC "nobody"' session list --vnic nobody
    refused 'no slot of a vNIC or VM "nobody"' slot show nobody
    ok slot
    prints '^-  +- +unclaimed'
    ok slot show web
    prints '^State: +active \(filters\)$'
    prints '^Addresses: +10.0.0.5, fd00::/64$'
    prints '^from-vm.packets +12.3M$'
    prints '^to-vm +tcp-no-session +42$'
    lacks 'opens nothing'
    ok slot show --explain web-0
    prints '^to-vm +tcp-no-session +42 +TCP segment that opens nothing'
    json 'length == 2 and .[0].counters["from-vm.packets"] == 12345678 and .[0].counters["rarp.passed"] == 0
        and (.[0].drops | map(select(.reason == "tcp-no-session")) == [{direction:"to-vm", reason:"tcp-no-session",
             packets:42, text:"TCP segment that opens nothing and belongs to no session"}])
        and .[0].settings.on_missing_state == "block" and .[0].epoch == 3' slot show db

    json 'length == 4 and .[0] == {vnic:"db-0", vm:"db", network:"blue", proto:"tcp", vlan:0, local:"10.0.0.6",
        local_port:5432, remote:"10.0.0.5", remote_port:40000, opened_by:"remote", local_state:"established",
        remote_state:"established", age_s:125, idle_s:3, packets_from_vm:10, packets_to_vm:12, bytes_from_vm:1000,
        bytes_to_vm:123456, flags:["replied","imported"], rule:1, generation:'"$gen"', rule_text:.[0].rule_text}
        and (.[0].rule_text | test("web to db")) and .[2].remote_state == "?" and .[2].rule_text == null
        and .[2].local == "fd00::6"' session
    ok session
    prints '^db-0 +db +tcp +10.0.0.6:5432 +10.0.0.5:40000 +remote +established +2m5s +3s +10/12 +1000/123K +[0-9]+ +replied,imported +1: .*web to db'
    prints 'syn-sent/none'
    prints '\[fd00::6\]:5353'
    json 'length == 2' session --proto tcp
    json 'length == 1' session --proto udp --vm db
    json 'length == 1' session --proto 1
    json 'length == 1 and .[0].remote_port == 80' session --port 80
    json 'length == 2' session --peer 10.0.0.0/8
    json 'length == 1' session --peer fd00::/64
    json 'length == 1' session --state syn-sent
    json 'length == 3' session --limit 3
    json '. == []' session --vm web
    json '.count == 2' session --count --proto tcp
    ok session --count
    prints '^4$'
    ok --db unix:/none session
    prints '10/12 +1000/123K +[0-9]+ +replied,imported +1$'
    ok session flush --vnic db-0
    refused 'no slot' session flush --vnic none

    json 'map(.rule) as $r | ($r[-1] == 0) and (map(select(.rule == 1))[0] | .hits == 8 and .line == 5 and .builtin == false
        and .hits_by_vnic == {"web-0":4,"db-0":4}) and (map(select(.rule == 4000000000))[0].text == null)' rule
    json 'map(select(.rule == 0))[0].hits == 9' rule --vnic db-0
    ok rule
    prints '^ +1 +5 +8 +db-0=4, web-0=4 +.*web to db'
    prints '^ +default +7 +18 '
    prints '^ +2 +base:3 +0 +rule "arp"'
    ok --db unix:/none rule
    checks=$((checks + 1))
    grep -q 'texts of rules are not known' err || fail "no word about the missing texts"

    json 'length == 2 and .[0].type == "packet" and .[0].flow.dport == 22 and .[0].reason == "default"
        and .[1].message == "packets were held for 12.4ms: as it should be"' event --local
    checks=$((checks + 1))
    grep -q '2 events were lost' err || fail "a gap is not told"
    ok event --local -f --limit 1
    prints 'packet +db-0 +drop tcp 10.0.0.6:22 <- 10.0.0.5:40000 \(default, rule 0'

    json '.[0] | .settings | .spoof == "strict" and .vlan == "block" and .ra_guard and .dhcp_guard and .ethertypes == []
        and .enroll_s == 0 and .max_half_open == 0 and .timers["tcp-established"] == 43200' slot show web
    ok slot show web
    prints '^Settings: +on-missing-policy block, on-missing-state block, on-unprotected-host block, anti-spoofing strict$'
    start_engine "$gen" enrolling
    json '.[] | select(.vnic == "web-0") | .state == "enrolling" and .enroll_left_s == 431 and .half_open == 5
        and .quarantine == false' slot list
    ok slot list
    prints '^web-0 .* enrolling 431s '
    json '.[0] | .enroll_left_s == 431 and .half_open == 5 and .learnt == ["10.0.0.77"] and .settings == {
        on_missing_policy:"block", on_missing_state:"block", on_unprotected_host:"block", quarantine:false,
        tcp_loose:true, spoof:"learn-once", vlan:"inspect", ra_guard:false, dhcp_guard:false, transfer_sessions:false,
        ethertypes:["0x88cc","0x88f7"], pickup_s:9, hold_ms:8, enroll_s:600, max_sessions:1, max_half_open:2,
        max_new_sessions:3, max_fragments:4, max_logs:5, timers:(.settings.timers)}
        and (.settings.timers | length == 14 and .["tcp-established"] == 7200 and .icmp == 20)' slot show web
    ok slot show web
    prints '^State: +enrolling \(running sessions are picked up, refusals are only logged\)$'
    prints '^Enrolment left: +431 s$'
    prints '^Learnt addresses: +10.0.0.77$'
    prints '^Half-open: +5$'
    prints 'anti-spoofing learn-once, tcp loose, transfer-sessions off, vlan inspect, ra-guard off, dhcp-guard off, ethertypes 0x88cc 0x88f7, hold 8ms, enroll 600s, max-sessions 1, max-half-open 2, max-new-sessions 3, max-fragments 4, max-logs 5, timer tcp-established 7200s$'

    # Rules are numbered anew in each generation: no text of another one.
    start_engine 999999
    json '.[0].rule_text == null and .[0].rule == 1' session
    ok rule
    prints 'of generation 999999'
}
# moatctl that goes on: leaves its pid in `follower`, its output in out and err.
follow() {
    checks=$((checks + 1))
    : >out # what was there before must not be taken for its output
    : >err
    "$moatctl" "$@" >out 2>err </dev/null &
    follower=$!
}
ends() { # CODE: the follower ends by itself or, with a signal, at once
    local got
    [ $# = 1 ] || kill -"$2" $follower
    wait $follower
    got=$?
    [ $got = "$1" ] || fail "it ended with $got, not $1"
}
lines() { [ "$(wc -l <out)" -ge "$1" ]; } # output so far
test_trace() {
    local gen sig
    gen=$("$moatctl" --format json policy show | jq .generation)
    start_engine "$gen"
    ok --format json trace --limit 6
    checks=$((checks + 1))
    jq -es 'length == 6 and .[0].vnic == "db-0" and .[0].vm == "db" and .[0].direction == "to-vm" and .[0].by == "rule"
        and .[0].flow.dport == 5432 and .[0].rule == 1 and (.[0].rule_text | test("web to db")) and .[0].session.opened_by == "remote"
        and .[1].reason == "tcp-window" and .[1].verdict == "drop" and .[1].session.packets_to_vm == 12 and .[1].session.flags == ["replied"]
        and .[2].seq == 6 and .[2].verdict == "reject" and .[2].vlan == 7 and .[2].session == null
        and .[3].by == "enrolling" and .[3].slot_state == "enrolling" and .[4].flow == null and .[4].rule == null
        and .[5].flow.family == "arp"' out >/dev/null || fail "trace as JSON"
    grep -qx 'moatctl: 3 packets were lost' err && grep -qx '6 packets, 3 lost' err || fail "losses are not told"
    ok trace --limit 6 --explain
    prints '^2023-11-14T22:13:20.000001Z +db-0 +db +to-vm +tcp 10.0.0.5:40000 -> 10.0.0.6:5432 S +74 +allow +rule +none/syn-sent 0s +[0-9]+ +1: .*web to db'
    prints 'from-vm +tcp 10.0.0.6:5432 -> 10.0.0.5:40000 P\. +1500 +drop +tcp-window: TCP segment outside of the window'
    prints 'vlan 7 udp \[fd00::6\]:5353 -> \[fd00::1\]:53 +62 +reject +default'
    prints 'icmp 10.0.0.5 -> 10.0.0.6 type 8 code 0 +60 +allow +enrolling, else rule'
    prints '\(no address\) +9 +drop +l2-short'
    prints 'arp 10.0.0.5 -> 10.0.0.6'

    # What the engine is asked: of all slots, of a VM's vNICs, of one; filters; verdicts.
    rm -f engine.asked
    ok trace --limit 1
    ok trace --limit 1 --vm db --refused tcp port 80
    ok trace --limit 1 --vnic db-1 --passed 'tcp and port 80'
    checks=$((checks + 1))
    diff - engine.asked >out <<'END' || fail "the engine was asked for something else"
 0 0 3
db-0 20 0 2
db-1 20 0 2
db-1 20 0 1
END
    usage 'syntax error' trace tcp prot 80
    usage 'syntax error' trace 'tcp['
    usage 'becomes [0-9]+ instructions, at most 512' trace "$(seq -s ' or ' -f 'port %.0f' 1 2 400)"
    usage 'leave nothing' trace --refused --passed
    usage 'no number' trace --limit 0
    refused 'no slot of vNIC "nobody"' trace --vnic nobody
    refused 'no slot of VM "nobody"' trace --vm nobody

    # It goes on until a signal, and says how many there were.
    for sig in INT TERM; do
        follow trace
        eventually lines 7
        ends 0 $sig
        grep -qx '6 packets, 3 lost' err || fail "SIG$sig: no count"
    done
    : >out
    "$moatctl" trace 2>err | head -n 3 >out
    [ "$(wc -l <out)" = 3 ] || fail "trace | head"

    start_engine "$gen" gone
    follow trace
    ends 1
    grep -q 'closed the connection' err && grep -q '6 packets, 3 lost' err || fail "an engine that goes away"
    start_engine "$gen" refuse
    refused 'not .x1b\[31mtoday' trace
    start_engine "$gen" short
    refused 'the engine at ' trace
}
test_capture() {
    local gen
    gen=$("$moatctl" --format json policy show | jq .generation)
    start_engine "$gen"
    ok capture --limit 6 -w a.pcapng
    [ "$(stat -c %a a.pcapng)" = 600 ] || fail "the mode of the file"
    grep -qx '6 packets, 3 lost' err || fail "losses are not told"
    checks=$((checks + 1))
    tcpdump -n -e -r a.pcapng >out 2>err
    [ "$(wc -l <out)" = 6 ] || fail "tcpdump reads something else"
    prints '52:00:00:00:00:02 > 52:00:00:00:00:01, ethertype Unknown \(0x88b5\), length 1500'
    # What the file is made of, read by somebody else's eyes.
    python3 - a.pcapng >out 2>err <<'END' || fail "the file's structure"
import struct, sys
d = open(sys.argv[1], 'rb').read()
at, kinds, names, packets = 0, [], [], []
while at < len(d):
    kind, n = struct.unpack_from('<II', d, at)
    assert n % 4 == 0 and struct.unpack_from('<I', d, at + n - 4)[0] == n, at
    body, fixed = d[at + 8:at + n - 4], {0x0a0d0d0a: 16, 1: 8, 6: 20}[kind]
    if kind == 6:
        cap = struct.unpack_from('<I', body, 12)[0]
        fixed += (cap + 3) & ~3
    options, o = {}, fixed
    while o < len(body):
        code, size = struct.unpack_from('<HH', body, o)
        if not code:
            assert size == 0 and o + 4 == len(body)
        else:
            options[code] = body[o + 4:o + 4 + size]
        o += 4 + ((size + 3) & ~3)
    kinds.append(kind)
    at += n
    if kind == 1:
        assert struct.unpack_from('<HHI', body)[0] == 1
        names.append(options[2].decode())
    if kind == 6:
        i, hi, lo, cap, length = struct.unpack_from('<IIIII', body)
        packets.append((names[i], (hi << 32) + lo, cap, length, options[1].decode(),
                        struct.unpack('<I', options[2])[0], struct.unpack('<Q', options.get(4, bytes(8)))[0]))
assert kinds[0] == 0x0a0d0d0a and kinds.count(0x0a0d0d0a) == 1
assert names == ['db-0 to-vm', 'db-0 from-vm', 'web-0 to-vm'], names
p = packets
assert [x[1] for x in p] == [1700000000000001 + i for i in range(6)]
assert [x[2] for x in p] == [14, 14, 14, 14, 9, 14] and p[1][3] == 1500
assert [x[5] for x in p] == [1, 2, 2, 1, 2, 1]
assert [x[6] for x in p] == [0, 0, 3, 0, 0, 0]
assert p[0][4].startswith('allow to-vm by rule; rule 1: ') and 'session none/syn-sent 0s' in p[0][4], p[0][4]
assert p[1][4].startswith('drop from-vm: tcp-window: TCP segment outside of the window; rule 1: '), p[1][4]
assert p[3][4].endswith('slot enrolling') and p[3][0] == 'web-0 to-vm'
END
    refused 'cannot write a.pcapng: File exists' capture --limit 1 -w a.pcapng
    ok capture --limit 1 -w a.pcapng --force --snaplen 10
    checks=$((checks + 1))
    [ "$(stat -c %s a.pcapng)" -lt 500 ] || fail "--force did not begin anew"
    rm -f engine.asked
    ok capture --limit 6 -wb.pcapng --snaplen 10 --vnic db-0
    grep -qx 'db-0 0 10 3' engine.asked || fail "the engine was asked for something else"
    ok capture --limit 6 --write - --snaplen 10 --vnic db-0 # the same on a pipe
    cmp -s out b.pcapng || fail "standard output gets something else"
    # Each packet is there at once.
    rm -f c.pcapng
    follow capture -w c.pcapng
    eventually captured c.pcapng 6
    ends 0 TERM
    captured c.pcapng 6 || fail "what was there has gone"
    refused 'cannot write /nowhere/x: No such file' capture --limit 1 -w /nowhere/x
    refused 'cannot write /dev/full: No space left' capture --limit 1 -w /dev/full --force
    # The disk is full behind some packets: those are whole.
    checks=$((checks + 1))
    (ulimit -f 1 && trap '' XFSZ && exec "$moatctl" capture --limit 6 -w d.pcapng) >out 2>err
    [ $? = 1 ] && grep -q 'cannot write d.pcapng: File too large' err || fail "a full disk"
    tcpdump -n -r d.pcapng >out 2>err || fail "a full disk leaves a broken file"
    [ "$(wc -l <out)" -ge 2 ] || fail "a full disk leaves too little"
    usage 'where to' capture
    usage 'where to' capture -w ''
    usage '-w needs an argument' capture -w
    usage 'no number from' capture -w x --snaplen 2049
    usage 'syntax error' capture -w x nonsense nonsense
    [ ! -e x ] || fail "a refused capture made a file"
    start_engine "$gen" hostile
    ok trace --limit 6
    lacks "$(printf '\x1b')"
    ok --format json trace --limit 6
    checks=$((checks + 1))
    jq -es 'length == 6' out >/dev/null || fail "hostile packets as JSON"
    ok capture --limit 6 -w e.pcapng
    checks=$((checks + 1))
    tcpdump -n -r e.pcapng >out 2>err || fail "hostile packets break the file"
    ! grep -q "$(printf '\x1b')" e.pcapng || fail "escapes in the file"
}
captured() { [ "$(tcpdump -n -r "$1" 2>/dev/null | wc -l)" = "$2" ]; }

test_engine_command() {
    local file
    for file in next bad abi busy lost late restart; do : >"$file"; done
    start_engine 1
    json 'keys == ["file","layout_version","mapping","packets_waited_us","pid","replacements","sessions_max",
        "sessions_used","since","slots_max","slots_used","socket","uptime_s","version"]
        and .version == "0.1.0-canned" and .file == "/usr/lib/moat/libmoat-engine.so" and .pid == 4711
        and .uptime_s == 125 and .sessions_max == 1000000 and .sessions_used == 4 and .slots_used == 3
        and .slots_max == 256 and .layout_version == 1 and .replacements == 0 and .packets_waited_us == null
        and (now - (.since | fromdate) | . > 120 and . < 180)' engine
    ok engine show
    prints '^Version: +0.1.0-canned$'
    prints '^Running for: +2m5s$'
    prints '^Sessions: +4 of 1000000'
    prints '^Engines before it: +none since the switch started$'
    usage 'too many arguments' engine show x
    usage 'too many arguments: "b"' engine replace a b

    # Refused: nothing has changed, and what to do.
    refused 'nowhere: No such file' engine replace nowhere
    refused "$(printf '%0.sx' {1..300}).*too long" engine replace "$(printf '%0.sx' {1..300})"
    mkdir -p "$(printf 'd%.0s' {1..200})/$(printf 'd%.0s' {1..100})"
    refused 'too long' engine replace "$(printf 'd%.0s' {1..200})/$(printf 'd%.0s' {1..100})"
    refused 'not replaced: not like this' engine replace ./bad
    checks=$((checks + 3))
    grep -q 'libmoat-engine.so, built for this machine' err && grep -q 'goes on' err || fail "no hint: not an engine"
    refused 'not replaced: not like this' engine replace abi
    grep -q 'Only a restart of the switch' err || fail "no hint: another interface"
    refused 'vNIC web-0 is being moved' engine replace busy
    grep -q 'Try again in a moment' err || fail "no hint: busy"
    refused 'lost the engine at .* before it answered' engine replace lost
    json '.replacements == 0' engine

    # Replaced: by the file that it starts with, by another one, by another one again.
    json 'keys == ["confirmed","file","packets_waited_us","prepare_ms","replacements","tries","version","version_before"]
        and .version_before == "0.1.0-canned" and .version == "0.2.0-canned" and .confirmed and .replacements == 1
        and .file == "/usr/lib/moat/libmoat-engine.so" and .prepare_ms == 1234 and .packets_waited_us == 34
        and .tries == 2' engine replace
    checks=$((checks + 1))
    [ ! -s err ] || fail "a hint where there is nothing to be said"
    ok engine replace bin/../next
    prints '^Engine: +0.2.0-canned -> 0.2.0-canned$'
    prints '^Prepared in: +1.23s$'
    prints '^Packets waited for: +34us$'
    prints '^Tries: +2$'
    prints '^Engines before it: +2$'
    prints "^Loaded from: +$dir/next\$"
    checks=$((checks + 1))
    grep -q "next start of the switch takes its own file again, not $dir/next" err || fail "no hint: for now only"
    json '.replacements == 2 and .packets_waited_us == 34 and .file == "'"$dir/next"'"' engine show
    json '.engine.replacements == 2' status
    refused 'now 0.2.0-canned serves, in process 4712: the switch has ended' engine replace restart

    # It takes long: a person is told why; the answer is not waited for for ever.
    script -qec "'$moatctl' engine replace late" /dev/null </dev/null >late.out 2>&1 &
    file=$!
    eventually grep -q '^waiting: the new engine is being prepared' late.out
    ! grep -q 'Engine:' late.out || fail "an answer before there is one"
    refused 'no answer within 1 s: another engine may still take over' --timeout 1 engine replace late
    checks=$((checks + 3))
    grep -q 'moatctl engine show' err || fail "no hint: late"
    ! grep -q waiting err || fail "progress where nobody looks"
    : >engine.go
    wait $file || { cp late.out out; fail "what takes long fails"; }
    grep -q '0.2.0-canned -> 0.2.0' late.out || { cp late.out out; fail "no answer behind the progress"; }

    start_engine 1 '' "$dir/bin/../next"
    ok engine replace next
    checks=$((checks + 1))
    [ ! -s err ] || fail "a hint about the very file that the switch starts with"

    # An engine of another version can be replaced; what serves then cannot be asked.
    start_engine 1 old
    refused 'speaks version .*, this program ' engine show
    grep -q 'different versions.*moatctl engine replace' err || fail "no hint: another version"
    json '.version == "0.2.0-canned" and .version_before == null and .file == null and .replacements == null
        and .confirmed == false' engine replace
    checks=$((checks + 2))
    grep -q 'speaks another version than this moatctl' err || fail "no hint: old moatctl"
    ok engine replace next
    prints '^Engine: +\(of another version\) -> 0.2.0-canned$'

    # Who listens to events goes on listening.
    start_engine 1 exchange
    json 'map(.type) == ["packet","opened","engine-replaced","packet"] and .[2].value == 34
        and .[2].message == "packets had to wait for 34us: 0.2.0-canned"' event --local --limit 4
    start_engine 1 exchange
    ok event --local -f --limit 4
    prints 'engine-replaced .*packets had to wait for 34us: 0.2.0-canned$'
    start_engine 1 refuse
    refused 'not replaced: not .x1b\[31mtoday' engine replace
    start_engine 1 short
    refused 'before it answered: reply' engine replace
    start_engine 1 hostile
    run 0 engine replace
    checks=$((checks + 1))
    ! grep -qP '[\x00-\x09\x0b-\x1f\x7f]' out || fail "engine replace: control characters reach the terminal"
    stop_engine
}

test_bad_engine() {
    local command
    start_engine 1 hostile
    for command in 'slot list' 'session list' 'rule list' 'event --local' 'engine show'; do
        # shellcheck disable=SC2086
        ok $command
        checks=$((checks + 1))
        ! grep -qP '[\x00-\x09\x0b-\x1f\x7f]' out || fail "$command: control characters reach the terminal"
        # shellcheck disable=SC2086
        "$moatctl" --format json $command 2>/dev/null | jq -es 'length == 1' >/dev/null || fail "$command: bad JSON"
    done
    run 0 status
    checks=$((checks + 1))
    ! grep -qP '[\x00-\x09\x0b-\x1f\x7f]' out || fail "status: control characters reach the terminal"
    start_engine 1 short
    refused 'the engine at ' slot list
    refused 'the engine at ' session flush --vnic web-0
    start_engine 1 silent
    refused 'no answer' --timeout 1 slot list
    start_engine 1 refuse
    refused 'not .x1b\[31mtoday' slot list
    refused 'not .x1b\[31mtoday' event --local
    run 1 status
    stop_engine
}

mkdir bin
ln -s "$moatctl" bin/moatctl
start_db
test_help
test_docs
test_unreachable
test_tls
test_network
test_vm
test_vnic
test_quarantine
test_completion
test_host
test_policy
test_policy_stdin
test_policy_race
test_wait
test_bad_inventory
test_event
test_migration
test_engine
test_trace
test_capture
test_engine_command
test_bad_engine
test_hostile
[ $failures = 0 ] || { printf '%d of %d checks failed\n' $failures $checks; exit 1; }
printf '%d checks passed\n' $checks
