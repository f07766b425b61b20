# shellcheck shell=bash
# Parts 8 and 9: policy withheld from the destination; a switch that crashes with nobody there.

# cut_off WORD: host B knows nothing: no database, no agent of A, and its own agent has just
# started. Its host.conf says what then.
cut_off() {
    moat_host_set B "on-missing-policy=$1" database-wait-ms=1000
    mgmt_cut B
    moat_agent_restart B KILL
}

# fail_mode HOST: the setting that holds for db's slot there, as the engine sees it.
fail_mode() { ctl "$1" --format json slot show db-nic | jq -r '.[0] | "\(.ruleset) \(.settings.on_missing_policy)"'; }

withheld() { # WORD: the move with B cut off
    say "" "Host B loses its management network, and its agent is started again: it knows neither policy nor" \
        "settings of db, and cannot ask. Its own file says what to do:"
    cut_off "$1"
    show 'B#' cat host.conf -- cat "$(moat_host_conf B)"
    printf '\n  %sQEMU%s  live migration of db from host A to host B\n' "$dim" "$plain"
    guest_migrate db A B >/dev/null
    claim_soon 20 "B's slot of db has no ruleset, on-missing-policy is $1" says "^false $1" fail_mode B
    on B slot list
}

mend() {
    say "" "The network is mended: B finds the database, asks A for what A still keeps for it, and policy is back."
    mgmt_mend B
    claim_soon 40 "db's slot on B is active, held by B, with the policy's generation" back_on_b
    claim_soon 20 "all enforce what is intended" moat_settled_now 3
}
back_on_b() {
    moat_slot_is B db-nic state active && moat_slot_is B db-nic ruleset true &&
        moat_slot_is B db-nic generation "$(moat_generation)" && [ "$(moat_holder db-nic)" = B ]
}

conn_goes_on() { [ "$(answers busy)" -ge 5 ] && [ "$(answers speaks)" -ge 5 ]; }

# evidence_of WORD: which setting decided, and where it was found.
evidence_of() {
    say "" "The event that B wrote says which setting decided, and where it was found:"
    claim_soon 20 "on-missing-policy=$1, from the host file" says "on-missing-policy=$1 \(host file\)" \
        moat_admin --format json event list --vnic db-nic
    admin event list --vnic db-nic --severity notice --limit 4
}

policy_withheld() {
    headline "8. The destination knows nothing: block or allow"
    say "Usually policy comes with the VM, or from the database. What if neither can be had? That is the host" \
        "owner's decision. First: block."
    withheld block
    attempt web db 5432 timeout "policy would permit it"
    attempt stranger db 5432 timeout "policy forbids it"
    pings web db 0
    claim_least "packets to db refused for want of a policy" "$(moat_drops B db-nic to-vm no-policy)" 1
    claim_equal "the busy connection: answers within two seconds" "$(answers busy)" 0
    mend
    claim_soon 30 "web's connections from before go on: A had kept their sessions, and B fetched them" conn_goes_on
    evidence_of block
    attempt web db 5432 ok
    forbidden ", policy is back"

    quietly "db moves back to A" moat_migrate db B A
    say "" "The same with allow."
    withheld allow
    attempt web db 5432 ok "policy would permit it"
    attempt stranger db 5432 ok "policy forbids it, but nobody here knows"
    attempt other db 5432 timeout "still refused: other's own slot on A has its policy"
    claim_least "packets that passed because the fail mode says allow" "$(moat_counter B db-nic fail-mode.allowed)" 1
    claim_least "the busy connection: answers within two seconds" "$(answers busy)" 5
    mend
    claim_soon 30 "web's connections go on" conn_goes_on
    evidence_of allow
    attempt web db 5432 ok
    forbidden ", policy is back"
}

crash() {
    headline "9. The switch crashes, and nobody is there to help"
    say "On host B: the agent is killed, the database is killed, then the switch itself, and only the switch is" \
        "started again. Slots, rulesets and sessions are in a file of hugepages that outlives it."
    local before
    before=$(sessions B)
    moat_agent_stop B KILL
    central_stop KILL
    quietly "kill -9 of B's switch, and its restart" host_switch_restart B KILL
    claim_soon 20 "db is connected to the new switch" host_port_up B db
    host_forget_macs
    on B status 2>/dev/null || true
    claim_least "established TCP sessions before" "$before" 3
    claim_least "established TCP sessions at db's slot after" "$(sessions B)" 3
    claim_equal "the idle connection answers" "$(guest_field web state tcp-send idle 10000 2>&1)" open
    claim_least "busy: answers within two seconds" "$(answers busy)" 1
    attempt web db 5432 ok
    forbidden ", from the file"
    quietly "database and agent come back" come_back
    claim_soon 30 "all enforce what is intended" moat_settled_now 3
}
come_back() {
    central_start
    moat_agent_start B
}
