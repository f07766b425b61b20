#!/bin/bash
# Records the captures of the real-* cases on a live switch with real guests: what a slot saw
# (moatctl capture), or what was on the wire behind it (tcpdump, at the machine outside).
# Run as root: record.sh [FOLDER]. Then write the goldens anew with test_replay.sh --update, and
# read them.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/../../system/lib.sh"
to=$(realpath "${1:-$(dirname "$(readlink -f "$0")")}")

# wire CASE COMMAND...: what the machine outside sends and gets meanwhile, and no one else.
wire() {
    local file=$to/$1/capture.pcap log=$TESTBED_DIR/tcpdump.$1
    shift
    mkdir -p "$(dirname "$file")"
    testbed_spawn tcpdump "$log" ip netns exec "$TESTBED_ID-outside" tcpdump -Z root -i eth0 --immediate-mode -U -w "$file" \
        ether host "$(moat_mac outside)"
    WAIT_LOG=$log wait_for 5 tcpdump grep -q 'listening on' "$log"
    "$@" >&2
    testbed_kill tcpdump
}

# slot CASE SNAPLEN COMMAND...: what web's slot judges meanwhile.
slot() {
    local file=$to/$1/capture.pcapng snaplen=$2 vars
    shift 2
    mkdir -p "$(dirname "$file")"
    mapfile -t vars < <(moat_ctl_env A)
    testbed_spawn capture "$TESTBED_DIR/capture.out" ip netns exec "$(host_ns A)" env "${vars[@]}" \
        "$(moat_program moatctl)" capture --vnic=web-nic "--snaplen=$snaplen" --force -w "$file"
    # Replay knows no session from before: nor shall the slot.
    ctl A session flush --vnic=web-nic >&2
    # It has begun when the first packet is in it.
    captured() { traffic web ping 10.0.0.3 8 500 && [ "$(stat -c %s "$file")" -gt 400 ]; }
    WAIT_LOG=$TESTBED_DIR/capture.out wait_for 10 "the capture" captured
    "$@" >&2
    testbed_kill capture
}

session() {
    guest_cmd web shell "arp -d 10.0.0.3; true"
    traffic web ping 10.0.0.3 56
    guest_cmd web tcp-connect s 10.0.0.3 5001 idle
    guest_cmd web tcp-send s
    guest_cmd web tcp-send s
    guest_cmd web tcp-close s
    traffic web udp 10.0.0.3 53 40
    traffic web tcp 10.0.0.3 6001 300
    traffic web udp 10.0.0.3 6001 40 300
    traffic web ping fd00::3 56
    traffic web tcp fd00::3 5001
}
neighbours_ask() {
    ip -n "$TESTBED_ID-outside" neigh flush dev eth0
    traffic outside ping 10.0.0.3 56
    traffic outside ping fd00::3 56
}
refused() {
    traffic outside tcp 10.0.0.3 6000   # the slot says no
    traffic outside tcp 10.0.0.3 5009   # db itself does: nobody listens
    traffic outside udp 10.0.0.3 6000 40
    traffic outside udp 10.0.0.3 5009 40
    traffic outside tcp fd00::3 6000
    traffic outside udp fd00::3 6000 40
    traffic outside tcp 10.0.0.3 6001 300 # silence
}
fragments() {
    traffic web udp "$1" 53 3000
    traffic web ping "$1" 3000
    traffic web udp "$1" 6001 3000 300
}
reboot() {
    traffic web hold 10.0.0.3 5001 40001
    guest_reset web
    guest_wait_boot web
    guest_cmd web ip 10.0.0.1/24
    guest_cmd web ip fd00::1/64
    traffic web hold 10.0.0.3 5001 40001 10000
}

system_test
part "one host, two guests, the machine outside"
moat_start A
moat_vm web 10.0.0.1,fd00::1
moat_vm db 10.0.0.3,fd00::3
outside_start A 10.0.0.99,fd00::99
moat_guests A web db
policy record <<'END'
policy "record" version 1
tier t {
    reject from any to vm "db" service tcp 6000, udp 6000
    allow from any to vm "db" service tcp 5000-5999, udp 53, udp 5000-5999, icmp echo-request, icmp6 echo-request
}
default drop
END
guest_cmd db tcp-listen 5001 idle
traffic db serve 5002
traffic db udp-echo 53

part "captures"
slot real-session 2048 session
wire real-neighbours neighbours_ask
wire real-refused refused
slot real-fragments4 2048 fragments 10.0.0.3
slot real-fragments6 2048 fragments fd00::3
slot real-reset 2048 reboot

part "the same with TSO"
guest_stop web
guest_stop db
export HOST_TSO=true
host_switch_restart A
for vm in web db; do host_port_del A "$vm"; done
moat_guests A web db
check_soon 20 "both enforce what is intended" moat_settled_now 2
traffic db serve 5002
slot real-tso 128 traffic web bulk 10.0.0.3 5002 400000 40000
chmod 644 "$to"/real-*/capture*
ls -l "$to"/real-*/capture* >&2
verdict
