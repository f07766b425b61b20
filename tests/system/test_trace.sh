#!/bin/bash
# On a live switch with real guests: trace follows packets of a permitted and of a refused connection,
# capture writes them, and replay of that capture by the same policy says the same.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

system_test
part "web and db on A"
moat_start A
moat_vm web 10.0.0.1 label role=web
moat_vm db 10.0.0.3 label role=db
moat_guests A web db
policy shop <<'END'
policy "shop" version 1
group web = vms labelled role=web
group db = vms labelled role=db
tier t {
    rule "the database" allow from web to db service tcp 5001
    rule "not this one" reject from any to db service tcp 5999
}
default drop
END
guest_cmd db tcp-listen 5001 idle
wait_for 20 "both vNICs to enforce policy" moat_settled_now 2

# follow NAME COMMAND...: moatctl in the background.  ends NAME: interrupts it, and it ends well.
declare -A followers
follow() {
    local name=$1 vars
    shift
    mapfile -t vars < <(moat_ctl_env A)
    # No function: the signal must reach the program itself.
    ip netns exec "$(host_ns A)" env "${vars[@]}" "$(moat_program moatctl)" "$@" >"$TEST_TMP/$name.out" 2>"$TEST_TMP/$name.err" </dev/null &
    followers[$name]=$!
}
ends() {
    local rc=0
    kill -INT "${followers[$1]}"
    wait "${followers[$1]}" || rc=$?
    check_equal "$1 ends by SIGINT with" $rc 0
}
traces() { ctl A --format json slot show web-nic | jq '[.[0].counters["trace.packets"], .[0].counters["trace.lost"]] | @csv' -r; }
refused_is_there() { [ "$(jq -s 'map(select(.verdict == "reject")) | length' "$TEST_TMP/web.out")" -ge 1 ]; }
listens() { grep -q listening "$TEST_TMP/$1.err"; }

part "trace, live"
follow web --format json trace --vnic web-nic tcp
follow refused trace --refused --vm web tcp port 5999
follow all capture -w "$TEST_TMP/all.pcapng" --vnic web-nic
for name in web refused all; do wait_for 20 "$name to listen" listens $name; done
check_equal "web -> db, permitted" "$(guest_cmd web tcp-try 10.0.0.3 5001 2000)" ok
check_equal "web -> db, rejected" "$(guest_cmd web tcp-try 10.0.0.3 5999 2000)" refused
check_soon 10 "the refused packet is traced" refused_is_there
for name in web refused all; do ends $name; done
cat "$TEST_TMP/refused.out" "$TEST_TMP"/*.err
check "a permitted SYN: by its rule" jq -es 'any(.[]; .verdict == "allow" and .by == "rule" and .flow.dport == 5001
    and .direction == "from-vm" and .rule_text == "rule \"the database\" allow from web to db service tcp 5001" and .vm == "web"
    and .session.local_state == "syn-sent")' "$TEST_TMP/web.out"
check "what follows: by its session, both ways" jq -es 'map(select(.by == "session" and .verdict == "allow")) |
    any(.[]; .direction == "to-vm") and any(.[]; .direction == "from-vm" and .session.remote_state == "established")' "$TEST_TMP/web.out"
check "a refused SYN: reason and rule" jq -es 'any(.[]; .verdict == "reject" and .reason == "rule" and .flow.dport == 5999
    and (.rule_text | test("not this one")) and .session == null)' "$TEST_TMP/web.out"
check "--refused: the same" says '5999 .* reject ' cat "$TEST_TMP/refused.out"
check_equal "--refused: packets that passed" "$(log_lines "$TEST_TMP/refused.out" ' allow ')" 0
check "losses are told" grep -qE '^[0-9]+ packets, 0 lost$' "$TEST_TMP/web.err"
before=$(traces)
guest_cmd web tcp-try 10.0.0.3 5001 2000 >/dev/null
check_equal "packets traced and lost, when nobody traces" "$(traces)" "$before"

part "the capture, read by others and by replay"
check "tcpdump" says '10.0.0.1.* > 10.0.0.3.5999: Flags \[S\]' tcpdump -n -r "$TEST_TMP/all.pcapng"
cat >"$TEST_TMP/all.json" <<END
{"networks": $(moat_admin --format json network list),
 "vms": [$(moat_admin --format json vm show web), $(moat_admin --format json vm show db)]}
END
"$(moat_program moatctl)" --format json replay "$TEST_TMP/shop.moat" "$TEST_TMP/all.pcapng" --inventory "$TEST_TMP/all.json" \
    --name web >"$TEST_TMP/replay.out"
tail -n 1 "$TEST_TMP/replay.out"
what='[.direction, .flow.sport, .flow.dport, .tcp_flags, .verdict, .reason, .by, .rule]'
check_same "replay says of each TCP packet what the switch said" "$(jq -c "select(.flow.proto == 6) | $what" "$TEST_TMP/replay.out")" \
    "$(jq -c "select(.flow.proto == 6) | $what" "$TEST_TMP/web.out")"
check "replay answers what the switch answered" jq -es 'any(.[]; .answer == "rst")' "$TEST_TMP/replay.out"
verdict
