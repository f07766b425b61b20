#!/bin/bash
# What concerns one VM concerns no other. Quarantine cuts its sessions, idle ones too, within a
# second or two; a flood reaches its own quota and costs neither its established connections nor
# its neighbours; an address that it uses first becomes its own. And a VM that was reset gets its
# old tuple back, though the other end still holds the connection of its former life.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

count() { ctl A session list "--vnic=$1-nic" --proto=tcp "${@:2}" --count; }
state() { guest_field "$1" state tcp-status "$2"; }
received() { guest_field "$1" received tcp-status "$2"; }
retransmits() { guest_field "$1" retransmits tcp-status "$2"; }
echoes() { guest_cmd "$1" tcp-send "$2" 5000; } # fails if nothing comes back

# beyond NUMBER COMMAND...: it prints more.
beyond() { at_least $(($1 + 1)) "${@:2}"; }

# event_us KIND VM: when the last such event was, in microseconds since 1970; empty: none.
event_us() {
    moat_admin --format json event list --limit 1000 | jq -r --arg k "$1" --arg vm "$2" \
        '[.[] | select(.kind == $k and .vm == $vm)] | last | .time // empty' | { read -r t && date -d "$t" +%s%6N; }
}

# events KIND VM: how many.
events() { moat_admin --format json event list --limit 1000 | jq -r --arg k "$1" --arg vm "$2" '[.[] | select(.kind == $k and .vm == $vm)] | length'; }

learnt() { ctl A --format json slot show noisy-nic | jq -r '.[0].learnt | map(tostring) | join(" ")'; }

system_test
part "one host, three guests; the inventory does not know noisy's address"
moat_start A
moat_vm web 10.0.0.1
moat_vm db 10.0.0.3
moat_vm noisy -10.0.0.9
moat_guests A web db noisy
policy one <<'END'
policy "one VM" version 1
tier t {
    allow from any to vm "db" service tcp 5001-5002, icmp echo-request
    allow from vm "noisy" to any service tcp 5003
}
default drop
settings for vm "noisy" {
    anti-spoofing learn-once
    max-half-open 20
    timer tcp-first 5s
    timer tcp-opening 5s
}
END
guest_cmd db tcp-listen 5001 busy
guest_cmd db tcp-listen 5002 idle

part "the first address that noisy uses is its own"
check_equal "ping from noisy" "$(traffic noisy ping 10.0.0.3 56 3000)" ok
check "slot show says so: $(learnt)" says 10.0.0.9 learnt
check_soon 5 "an event says so" at_least 1 events address-learnt noisy
guest_cmd noisy shell "ip addr add 10.0.0.8/24 dev eth0; ip route add 10.0.0.1 dev eth0 src 10.0.0.8; arp -s 10.0.0.1 02:00:00:00:00:01"
check_equal "ping from a second address of noisy's" "$(traffic noisy ping 10.0.0.1 56 500)" timeout
check_least "its slot has refused it" "$(moat_drops A noisy-nic from-vm spoof-ip)" 1
check "and has learnt nothing more: $(learnt)" not says '10\.0\.0\.8' learnt

part "noisy floods"
guest_cmd noisy tcp-connect busy 10.0.0.3 5001 busy:50 >/dev/null
guest_cmd web tcp-connect busy 10.0.0.3 5001 busy:50 >/dev/null
guest_cmd web tcp-connect idle 10.0.0.3 5002 idle >/dev/null
guest_cmd noisy shell "arp -s 10.0.0.77 02:00:00:00:00:77"
guest_cmd noisy tcp-mark
guest_cmd web tcp-mark
printf '        %s\n' "$(traffic noisy syn-flood 10.0.0.77 5003 3000 2000)"
check_equal "noisy, another connection while its quota is used up" "$(traffic noisy tcp 10.0.0.3 5002 500)" timeout
check_least "refused by the quota of half-open sessions" "$(moat_drops A noisy-nic from-vm quota-half-open)" 2900
check_most "sessions of noisy's flood" "$(count noisy --port=5003)" 20
for vm in web db; do
    check_least "the switch knows no such MAC and floods: refused at $vm's slot" "$(moat_drops A $vm-nic to-vm l2-destination)" 10
    check_equal "sessions that it has opened there" "$(count $vm --port=5003)" 0
done
check_soon 5 "an event says so" says 'quota of half-open sessions is reached: 20' moat_admin event list --vm=noisy
check_soon 5 "noisy's established connection echoes" beyond "$(received noisy busy)" received noisy busy
check "web's connection echoes" echoes web idle
check_equal "web, another connection" "$(traffic web tcp 10.0.0.3 5002 3000)" ok
check_equal "web, retransmissions meanwhile" "$(retransmits web busy)" 0
check_equal "refused by a quota at db's slot" "$(moat_drops A db-nic to-vm quota-half-open)" 0
opens_again() { [ "$(traffic noisy tcp 10.0.0.3 5002 500)" = ok ]; }
check_soon 15 "noisy can open connections again when the flood has timed out" opens_again

part "quarantine of web"
check_least "sessions of web before" "$(count web --port=5001)" 1
ctl A vm quarantine web --wait=10
check_soon 2 "no session of web is left, idle ones neither" is 0 count web
cut_after() {
    local cut
    cut=$(event_us sessions-cut web)
    [ -z "$cut" ] && echo none || echo $(((cut - $(event_us quarantine web)) / 1000))
}
check_soon 5 "an event says that sessions were cut" at_least 1 events sessions-cut web
check_most "milliseconds from the event of the quarantine to that" "$(cut_after)" 2000
check_soon 10 "web's live connection hears nothing: it retransmits" beyond 0 retransmits web busy
got=$(received web busy)
check_soon 10 "and again" beyond "$(retransmits web busy)" retransmits web busy
check_equal "records that it has received meanwhile" "$(received web busy)" "$got"
check_equal "a new connection of web's" "$(traffic web tcp 10.0.0.3 5002 500)" timeout
check_equal "a ping of web's" "$(traffic web ping 10.0.0.3 56 500)" timeout
check_soon 5 "noisy's connection goes on" beyond "$(received noisy busy)" received noisy busy

part "release"
ctl A vm release web --wait=10
check_equal "a new connection of web's" "$(traffic web tcp 10.0.0.3 5002 3000)" ok
stray() { moat_drops A web-nic from-vm tcp-no-session; }
check_soon 30 "what was cut stays so: its retransmissions belong to no session" beyond "$(stray)" stray
check_equal "records that the cut connection has received" "$(received web busy)" "$got"

part "web is reset, and uses the same port again"
check_equal "a connection from port 40001" "$(traffic web hold 10.0.0.3 5002 40001)" ok
before=$(moat_counter A db-nic tcp.unbelieved)
guest_reset web
guest_wait_boot web
guest_cmd web ip 10.0.0.1/24
check_equal "its session has outlived the reset at db's slot" "$(count db --port=40001)" 1
check_equal "another connection from port 40001" "$(traffic web hold 10.0.0.3 5002 40001 10000)" ok
check_least "db's slot let the SYN pass to be challenged" $(($(moat_counter A db-nic tcp.unbelieved) - before)) 1
for vm in web db; do check_equal "sessions of that tuple at $vm's slot" "$(count "$vm" --port=40001)" 1; done
verdict
