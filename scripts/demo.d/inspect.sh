# shellcheck shell=bash
# Part 4: a refusal that is told to its sender, a packet explained, a VM in quarantine.

# polite: shop.moat with one rule more, whose refusals are answered.
polite() {
    sed '/"VMs may ping each other"/a\    rule "the web is not for everybody" reject from any to web service tcp 80' shop.moat
}

# count_sessions NAME: its live TCP sessions on host A.
count_sessions() { ctl A session list --vnic "$1-nic" --proto tcp --count 2>/dev/null || echo none; }
has_sessions() { [ "$(count_sessions "$1")" = "$2" ]; }

inspect() {
    headline "4. Explained, answered, cut"
    say "Drop is silence: the sender waits until it gives up. Reject tells it at once. One rule more:"
    polite >polite.moat
    show 'admin$' diff shop.moat polite.moat -- diff shop.moat polite.moat || true
    admin policy apply polite.moat --wait 20 || true
    claim_soon 20 "three vNICs enforce it" moat_settled_now 3

    say "" "Somebody follows what web's slot refuses, with a filter as tcpdump has it, while others try:"
    ctl A trace --vm web --refused --limit 1 tcp port 80 >trace 2>trace.err &
    local tracer=$!
    wait_for 10 "the trace" grep -qs listening trace.err
    attempt stranger web 80 refused "web's slot sends a RST in web's name"
    wait "$tracer" || true
    show 'A#' moatctl trace --vm web --refused --limit 1 "'tcp port 80'" -- cat trace
    claim "the trace says that a rule refused it" grep -q 'reject' trace
    claim "and which one" grep -q 'the web is not for everybody' trace
    attempt other web 80 refused "other's own slot tells it"
    attempt web db 22 timeout "a drop stays silent"
    claim_least "answers that web's slot has sent" "$(moat_counter A web-nic reject.answers)" 1
    claim_least "answers that other's slot has sent" "$(moat_counter A other-nic reject.answers)" 1

    say "" "web misbehaves? An operator puts it in quarantine, whatever the policy says. Its live sessions end, idle" \
        "ones too, without waiting for a packet."
    guest_cmd web tcp-connect live "$(moat_addr db)" 5432 busy:50 5000 >/dev/null
    guest_cmd web tcp-connect quiet "$(moat_addr db)" 5433 idle 5000 >/dev/null
    claim_least "live TCP sessions of web" "$(count_sessions web)" 2
    claim_least "answers on the live connection within two seconds" "$(answers live)" 5
    admin vm quarantine web --wait 10 || true
    claim_soon 1 "a second later web has no session left" has_sessions web 0
    claim_equal "answers on the live connection within two seconds" "$(answers live)" 0
    attempt web db 5432 timeout "in quarantine"
    attempt stranger web 80 timeout "in quarantine nothing is answered"
    admin event list --vnic web-nic --limit 3
    claim_soon 10 "the event says how many idle sessions it has cut" says 'quarantine has ended sessions: [1-9]' moat_admin event list --vnic web-nic
    admin vm release web --wait 10 || true
    attempt web db 5432 ok "released"

    guest_cmd web tcp-close live >/dev/null 2>&1 || true
    guest_cmd web tcp-close quiet >/dev/null 2>&1 || true
    ctl A session flush --vnic db-nic >/dev/null # its side of them would wait for a timer
    moat_admin policy apply shop.moat --wait 20 >/dev/null
    claim_soon 20 "the policy of before is in force again" moat_settled_now 3
}
