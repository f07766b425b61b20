#!/bin/bash
# What is wrong is refused, with the reason, counted, logged once, and changes nothing: a policy
# with mistakes, wrong messages, rulesets and session records on the control socket, peers
# without a certificate of the cluster, and a VM that the database does not let move there.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

# state: what must not change, as the engine on A and the database tell it.
state() {
    ctl A --format json slot show web-nic | jq -S '.[0] | del(.counters, .drops, .sessions)'
    ctl A --format json slot show db-nic | jq -S '.[0] | del(.counters, .drops, .sessions)'
    moat_admin policy show
    moat_admin --format json vm show db | jq -S .
}

# verdicts: and their effect.
verdicts() {
    echo "web -> db, permitted: $(guest_cmd web tcp-try 10.0.0.3 5001 2000)"
    echo "web -> db, forbidden: $(guest_cmd web tcp-try 10.0.0.3 5999 1000)"
}
wanted="web -> db, permitted: ok
web -> db, forbidden: timeout"
unchanged() {
    check_same "$1: slots, policy and holders are as before" "$(state)" "$before"
    check_same "$1: verdicts are as before" "$(verdicts)" "$wanted"
    check_equal "$1: the open connection goes on" "$(guest_field web state tcp-send idle 5000 2>&1)" open
}

agent() { moat_agent_ctl "$1" moat/status json | jq -r ".$2"; } # HOST FIELD
agent_log() { log_lines "$(host_dir "$1")/moatd.log" "$2"; }   # HOST PATTERN

# tls HOST NAME ADDRESS [SECONDS]: a TLS connection from a host with the certificate of NAME. Stays
# quiet until the other side hangs up.
tls() {
    local dir
    dir=$(pki_dir)
    host_exec "$1" timeout "${4:-8}" openssl s_client -connect "$3" -cert "$dir/$2-cert.pem" -key "$dir/$2-privkey.pem" \
        -CAfile "$dir/cacert.pem" -quiet < <(exec sleep "${4:-8}") 2>&1 || true
}

system_test
part "two hosts, web and db on A"
moat_start A B
pki_stranger
pki_cert nobody
moat_vm web 10.0.0.1 label role=web
moat_vm db 10.0.0.3 label role=db
moat_guests A web db
cat >"$TEST_TMP/shop.moat" <<'END'
policy "good" version 1
group web = vms labelled role=web
group db = vms labelled role=db
tier t { allow from web to db service tcp 5001-5002 }
default drop
END
policy good <"$TEST_TMP/shop.moat"
guest_cmd db tcp-listen 5001 idle
guest_cmd db tcp-listen 5002 busy
guest_cmd db tcp-listen 5999 idle
guest_cmd web tcp-connect idle 10.0.0.3 5001 idle >/dev/null
guest_cmd web tcp-connect busy 10.0.0.3 5002 busy:50 >/dev/null
wait_for 20 "both vNICs to enforce policy" moat_settled_now 2
before=$(state)
check_same "verdicts are those of the policy" "$(verdicts)" "$wanted"

part "a policy with mistakes"
cat >"$TEST_TMP/bad.moat" <<'END'
policy "bad" version 1
group web = vms labelled role=web
group db = addresses 10.0.0.3/8
tier t {
    allow from any to db service tcp 5999
    allow from web to databse
    permit from web to db
}
default allwo
END
for command in "policy check" "policy apply"; do
    # shellcheck disable=SC2086
    check "$command: refused" not moat_admin $command "$TEST_TMP/bad.moat"
done
for place in 3:22 6:23 7:5 9:9; do
    check "there is an error at $place" says "bad.moat:$place: error" moat_admin policy apply "$TEST_TMP/bad.moat"
done
check_equal "errors, all in one run" \
    "$({ moat_admin --format json policy apply "$TEST_TMP/bad.moat" 2>/dev/null || true; } | jq '[.diagnoses[] | select(.severity == "error")] | length')" 4
head -c 100000 /dev/urandom >"$TEST_TMP/noise.moat"
check "noise: refused" not moat_admin policy apply "$TEST_TMP/noise.moat"
check "an older generation than expected: refused" not moat_admin policy apply "$TEST_TMP/shop.moat" --if-generation 7
check_equal "generation in force" "$(moat_generation)" 1
unchanged "a bad policy"

part "the control socket"
moat_agent_stop A # it would release what is not its own
refused_lines() { log_lines "$(host_dir A)/ovs-vswitchd.log" 'control socket: refused'; }
bad_ctl() { host_exec A "$MOAT_BUILD/tests/system/bad_ctl" "$(host_rundir A)/moat.ctl" db-nic | tee "$TEST_TMP/bad_ctl"; }
check "all that is wrong is refused, with a reason, and counted" bad_ctl
sed 's/^/        /' "$TEST_TMP/bad_ctl"
lines=$(refused_lines)
check_least "lines in the switch's log" "$lines" 1
check "the same once more" bad_ctl
check_equal "logged once: lines in the log now" "$(refused_lines)" "$lines"
check_equal "another user may not even connect" \
    "$(host_exec A setpriv --reuid=65534 --regid=65534 --clear-groups "$MOAT_BUILD/tests/system/bad_ctl" "$(host_rundir A)/moat.ctl" db-nic >/dev/null 2>&1 || echo refused)" refused
moat_agent_start A
wait_for 20 "both vNICs to enforce policy" moat_settled_now 2
unchanged "bad messages"

part "certificates"
refused_more() { [ "$(agent A '"connections-refused"')" -gt "$1" ]; }
for who in stranger nobody moatctl stranger nobody; do
    n=$(agent A '"connections-refused"')
    tls B $who "$(host_addr A):$MOAT_PEER_PORT" >"$TEST_TMP/tls" &
    check_soon 8 "the agent refuses $who, and counts it" refused_more "$n"
    wait $!
done
check_equal "logged once: stranger" "$(agent_log A 'connection-refused: .*no certificate that the cluster')" 1
check_equal "logged once: nobody" "$(agent_log A 'connection-refused: nobody: .*no host of this cluster')" 1
check_equal "logged once: moatctl" "$(agent_log A 'connection-refused: moatctl: .*no host of this cluster')" 1
n=$(agent A '"connections-refused"')
host_exec B bash -c "exec 3<>/dev/tcp/$(host_addr A)/$MOAT_PEER_PORT; printf 'GET / HTTP/1.0\r\n\r\n' >&3; timeout 3 cat <&3" >/dev/null 2>&1 || true
check_soon 8 "the agent refuses what is no TLS, and counts it" refused_more "$n"
n=$(agent A '"connections-refused"')
tls B B "$(host_addr A):$MOAT_PEER_PORT" 9 >"$TEST_TMP/tls" &
check_soon 9 "control: host B is let in, but must say what it wants" says 'connection-refused: B: it does not say what it wants' cat "$(host_dir A)/moatd.log"
wait $!
as() { # NAME ARGS...: moatctl on host B with that certificate
    local name=$1 dir
    dir=$(pki_dir)
    shift
    host_exec B env "MOAT_DB=$(central_remote)" "MOAT_CA_CERT=$dir/cacert.pem" "MOAT_CERTIFICATE=$dir/$name-cert.pem" \
        "MOAT_PRIVATE_KEY=$dir/$name-privkey.pem" "$(moat_program moatctl)" --timeout 3 "$@"
}
check "the database refuses the stranger" not as stranger vm list
check "the stranger cannot apply a policy" not as stranger policy apply "$TEST_TMP/shop.moat"
check "and the database says so" says 'SSL_accept|certificate' cat "$(central_dir)/ovsdb-server.log"
check "control: moatctl's own certificate is good" as moatctl vm list
unchanged "strangers"

part "a VM that may not move there"
moat_admin vm set db host=A
allowed='the database does not permit this VM on this host'
guest_migrate db A B >/dev/null
check_soon 10 "host B says that db may not be there" says "$allowed" moat_admin --format json event list --vnic db-nic
check_soon 10 "and blocks it, although the VM runs there" moat_slot_is B db-nic state blocked
check_equal "holder of db's vNIC" "$(moat_holder db-nic)" A
check_equal "permitted otherwise: web -> db" "$(guest_cmd web tcp-try 10.0.0.3 5001 2000)" timeout
check "the open connection gets no answer" not guest_cmd web tcp-send idle 2000
check_least "packets refused on B" "$(($(moat_drops B db-nic to-vm slot-blocked) + $(moat_drops B db-nic to-vm slot-arriving)))" 1
check_equal "migrations that count as completed" "$(moat_admin --format json migration list | jq '[.[] | select(.state == "completed")] | length')" 0
check_equal "logged once" "$(agent_log B "$allowed")" 1

part "control: then it may"
moat_admin vm set db host=A,B
check_soon 20 "db's slot on B is active" moat_slot_is B db-nic state active
check_soon 10 "holder of db's vNIC is B" is B moat_holder db-nic
host_forget_macs
check_equal "web -> db" "$(guest_cmd web tcp-try 10.0.0.3 5001 5000)" ok
check_equal "web -> db, forbidden" "$(guest_cmd web tcp-try 10.0.0.3 5999 1000)" timeout
check_equal "its sessions have come, too: the open connection goes on" "$(guest_field web state tcp-send idle 20000 2>&1)" open
verdict
