#!/bin/bash
# What policy rejects ends at once at whoever asked, what it drops ends in silence. TCP and
# UDP, IPv4 and IPv6; refused by the VM's own slot, whose answer goes back into the VM, and by
# the far one, whose answer leaves as if the refusing VM had sent it. Everything that is
# refused here is served behind the filter: nobody but a slot can have said no.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/lib.sh"

# ask TEXT FROM TO PORT TCP4 UDP4 TCP6 UDP6: how four questions end.
ask() {
    local text=$1 from=$2 to=$3 port=$4 ms=4000 addr addr6
    shift 4
    addr=$(moat_addr "$to")
    addr6=$(moat_addr6 "$to")
    [[ "$*" != *timeout* ]] || ms=700
    check_equal "$text, TCP" "$(traffic "$from" tcp "$addr" "$port" "$ms")" "$1"
    check_equal "$text, UDP" "$(traffic "$from" udp "$addr" "$port" 100 "$ms")" "$2"
    check_equal "$text, TCP over IPv6" "$(traffic "$from" tcp "$addr6" "$port" "$ms")" "$3"
    check_equal "$text, UDP over IPv6" "$(traffic "$from" udp "$addr6" "$port" 100 "$ms")" "$4"
}
rejected="ECONNREFUSED EHOSTUNREACH ECONNREFUSED EACCES" # ICMP 3/13, ICMPv6 1/1
silent="timeout timeout timeout timeout"

# answers VM: that its slot has sent.
answers() { moat_counter A "$1-nic" reject.answers; }

# answered VM BEFORE NUMBER: one answer to each question: the client did not have to ask again.
answered() { check_equal "$1's slot has answered" $(($(answers "$1") - $2)) "$3"; }

# accepted NAME: connections that its listeners have ever had from web's or outside's tests.
accepted() { guest_cmd "$1" tcp-status | jq -s 'length'; }

system_test
part "one host, two guests, the machine outside"
moat_start A
moat_vm web 10.0.0.1,fd00::1
moat_vm db 10.0.0.3,fd00::3
outside_start A 10.0.0.99,fd00::99
moat_guests A web db
policy reject <<'END'
policy "reject" version 1
tier t {
    allow from any to vm "db" service tcp 5001, udp 5001
    reject from any to vm "db" service tcp 6000, udp 6000
    reject from vm "web" to outside, unknown service tcp 6000, udp 6000
    allow from vm "web" to outside, unknown service tcp 5001, udp 5001
}
default drop
END
for name in db outside; do
    for port in 5001 6000 6001; do
        guest_cmd "$name" tcp-listen "$port" idle
        traffic "$name" udp-echo "$port"
    done
done

part "controls: everything answers where policy permits it"
ask "web to db, permitted" web db 5001 ok ok ok ok
ask "web to the machine outside, permitted" web outside 5001 ok ok ok ok
ask "outside to db, permitted" outside db 5001 ok ok ok ok
db_accepted=$(accepted db) outside_accepted=$(accepted outside)

part "rejected by the VM's own slot"
before=$(answers web)
# shellcheck disable=SC2086
ask "web to the machine outside, rejected" web outside 6000 $rejected
answered web "$before" 4
before=$(answers web) far=$(answers db)
# shellcheck disable=SC2086
ask "web to db, rejected by both, asked of web's" web db 6000 $rejected
answered web "$before" 4
check_equal "db's slot was not asked" "$(answers db)" "$far"

part "rejected by the far slot: nobody guards the sender"
before=$(answers db)
# shellcheck disable=SC2086
ask "outside to db, rejected" outside db 6000 $rejected
answered db "$before" 4

part "dropped: silence, and no answer"
before="$(answers web) $(answers db)"
# shellcheck disable=SC2086
ask "web to db, dropped" web db 6001 $silent
# shellcheck disable=SC2086
ask "outside to db, dropped" outside db 6001 $silent
check_equal "answers to what is dropped" "$(answers web) $(answers db)" "$before"
check_least "db's slot has dropped" "$(moat_drops A db-nic to-vm default)" 4

part "nothing came through"
check_equal "connections that db has accepted since" $(($(accepted db) - db_accepted)) 0
check_equal "connections that the machine outside has" $(($(accepted outside) - outside_accepted)) 0
for vm in web db; do check_equal "$vm's slot: answers that found no room" "$(moat_counter A "$vm-nic" inject.lost)" 0; done
verdict
