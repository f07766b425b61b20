# shellcheck shell=bash
# Parts 5 to 7: connections, the live migration, and the same without session transfer.

ids=(busy idle speaks)

# open_connections: from web to db: one busy, one idle, one where only the server speaks.
open_connections() {
    local addr
    addr=$(moat_addr db)
    for id in "${ids[@]}"; do guest_cmd web tcp-close "$id" >/dev/null 2>&1 || true; done
    guest_cmd web tcp-connect busy "$addr" 5432 busy:50 5000
    guest_cmd web tcp-connect idle "$addr" 5433 idle 5000
    guest_cmd web tcp-connect speaks "$addr" 5434 server-speaks 5000
}

conn() { guest_field web "$2" tcp-status "$1"; } # ID FIELD

print_connections() {
    guest_cmd web tcp-status | jq -r '[.id, .state, "sent \(.sent)", "received \(.received)", "longest gap \(.max_gap_ms) ms"] | join("  ")'
}

flow_tables() {
    local host
    for host in A B; do
        # The firewall of a host starts with the switch's first vhost-user port.
        if [ -S "$(host_rundir "$host")/moat.ctl" ]; then
            on "$host" session list --proto tcp --state established
        else
            printf '\n  Host %s has had no VM yet: its firewall starts with the first.\n' "$host"
        fi
    done
}

# mark: from here on gaps count.
mark() {
    guest_cmd web tcp-mark
    marked=$(conn speaks received)
    marked_busy=$(conn busy received)
}

# claim_alive LIMIT_MS: all three connections went on since the mark, without reset or stall.
claim_alive() {
    local id status
    claim_equal "the idle connection answers, first packet from the client" "$(guest_field web state tcp-send idle 5000 2>&1)" open
    sleep 1
    for id in "${ids[@]}"; do
        status=$(guest_cmd web tcp-status "$id")
        claim_equal "$id: state" "$(jq -r .state <<<"$status")" open
        claim_equal "$id: records lost or out of order" "$(jq -r .out_of_order <<<"$status")" 0
    done
    claim_most "busy: longest silence in ms" "$(conn busy max_gap_ms)" "$1"
    claim_most "speaks: longest silence in ms" "$(conn speaks max_gap_ms)" "$1"
    claim_least "busy: answers since then" "$(($(conn busy received) - marked_busy))" 5
    claim_least "speaks: records since then" "$(($(conn speaks received) - marked))" 5
}

connect_all() {
    headline "5. Three connections that live long"
    quietly "web opens them to db" open_connections
    sleep 1
    show 'web>' tcp-status -- print_connections
    local id
    for id in "${ids[@]}"; do claim_equal "$id" "$(conn "$id" state)" open; done
    say "" "The flow tables. Each vNIC has its own view of a connection: web's slot and db's slot both hold it."
    flow_tables
    claim_equal "established TCP sessions at db's slot" "$(sessions A)" 3
}

# sessions HOST: how many established TCP sessions db has there.
sessions() { ctl "$1" session list --vnic db-nic --proto tcp --state established --count 2>/dev/null || echo none; }

move_db() { # FROM TO: shows a live migration
    local figures
    printf '\n  %sQEMU%s  live migration of db from host %s to host %s\n' "$dim" "$plain" "$1" "$2"
    figures=$(moat_migrate db "$1" "$2" 2>"$demo_tmp/migrate") || { sed 's/^/    | /' "$demo_tmp/migrate"; }
    printf '    %s\n' "$(jq -r '"took \(.total_ms) ms, VM stopped for \(.downtime_ms) ms, \(.ram_bytes / 1048576 | floor) MB of memory"' <<<"${figures:-null}")"
}

# claim_handed_over FROM TO DECIDED_BY
claim_handed_over() {
    claim_equal "db's vNIC is held by host" "$(moat_holder db-nic)" "$2"
    claim_equal "state of its slot on $2" "$(moat_slot "$2" db-nic state)" active
    claim "$1 no longer filters for it" not moat_slot_is "$1" db-nic state active
    claim_least "session records sent" "$(moat_evidence db-nic sessions-sent)" 3
    claim_equal "session records accepted" "$(moat_evidence db-nic sessions-accepted)" "$(moat_evidence db-nic sessions-sent)"
    claim_most "packets held at the destination, in us" "$(moat_evidence db-nic hold-us)" 1000000
    claim_equal "setting that had to decide" "$(moat_evidence db-nic decided-by)" "$3"
}

live_migration() {
    headline "6. db moves to host B, live"
    say "Sessions are streamed to B while the VM runs; when its rings stop, the last changes and the epoch" \
        "follow, and B opens the slot with policy and sessions in place."
    mark
    move_db A B
    claim_alive 1000
    claim_handed_over A B none
    show 'web>' tcp-status -- print_connections
    say "" "The flow tables now: db's sessions are on B, with their history; those of web have stayed on A."
    flow_tables
    claim_equal "established TCP sessions at db's slot on B" "$(sessions B)" 3
    say "" "What policy forbids is refused on B exactly as it was on A."
    attempt web db 5432 ok
    forbidden ", db on B"
    claim_least "packets to db refused by the rule, on B" "$(moat_drops B db-nic to-vm rule)" 1
    claim_least "packets from db refused by the default, on B" "$(moat_drops B db-nic from-vm default)" 1
    say "" "The evidence of the move:"
    admin migration show db

    say "" "And back to A, with the same connections:"
    mark
    move_db B A
    claim_alive 1000
    claim_handed_over B A none
}

no_transfer() {
    headline "7. Control experiment: the same move without session transfer"
    say "Is it really the transfer that keeps connections alive? The policy now says transfer-sessions off" \
        "for db, everything else is the same: strict TCP."
    sed 's/transfer-sessions on/transfer-sessions off/' shop.moat >no-transfer.moat
    show 'admin$' diff shop.moat no-transfer.moat -- diff shop.moat no-transfer.moat || true
    admin policy apply no-transfer.moat --wait 20 || true
    claim_soon 20 "all enforce it" moat_settled_now 3
    mark
    move_db A B
    local id
    guest_cmd web tcp-send idle 3000 >/dev/null 2>&1 || true
    sleep 2
    claim_equal "busy: answers in the last seconds" "$(answers busy)" 0
    claim_equal "speaks: records in the last seconds" "$(answers speaks)" 0
    claim "idle: no answer either" not guest_cmd web tcp-send idle 3000
    claim_equal "session records sent" "$(moat_evidence db-nic sessions-sent)" 0
    claim "on-missing-state=block had to decide" says '^on-missing-state=block' moat_evidence db-nic decided-by
    claim_least "packets refused on B because no session is known" \
        "$(($(moat_drops B db-nic to-vm tcp-no-session) + $(moat_drops B db-nic from-vm tcp-no-session)))" 1
    admin migration list --vm db
    say "" "New connections are no problem: policy permits them. The shop's policy comes back, too."
    quietly "web opens its connections again" open_connections
    for id in "${ids[@]}"; do claim_equal "$id" "$(conn "$id" state)" open; done
    admin policy apply shop.moat --wait 20 || true
    claim_soon 20 "all enforce it" moat_settled_now 3
    mark
    move_db B A
    claim_alive 1000
}

# answers ID: how many records arrive within two seconds.
answers() {
    local before
    before=$(conn "$1" received)
    sleep 2
    echo $(($(conn "$1" received) - before))
}
