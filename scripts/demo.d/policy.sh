# shellcheck shell=bash
# Parts 2 and 3: a policy, a mistake, and what is allowed and refused.

apply_policy() {
    headline "2. A policy that reads aloud"
    show 'admin$' cat shop.moat -- cat shop.moat
    admin policy check shop.moat || true
    claim "the policy is accepted" moat_admin policy check shop.moat
    admin policy apply shop.moat --wait 20 || true
    claim_soon 20 "three vNICs enforce it" moat_settled_now 3
    claim_equal "generation in force at db's slot" "$(moat_slot A db-nic generation)" "$(moat_generation)"

    say "" "Now somebody makes a mistake. A policy with an error is refused whole, with every error named, and" \
        "the old one stays."
    local before
    before=$(moat_generation)
    show 'admin$' cat mistake.moat -- cat mistake.moat
    admin policy apply mistake.moat || true
    claim "it is refused" not moat_admin policy apply mistake.moat
    claim "errors are named by line and column" says 'mistake.moat:[0-9]+:[0-9]+: error' moat_admin policy apply mistake.moat
    claim_equal "generation in force" "$(moat_generation)" "$before"
    claim "the text in force is that of shop.moat" same_text shop.moat
}

same_text() { moat_admin policy show | cmp - "$1"; }

services() {
    guest_cmd db tcp-listen 5432 busy
    guest_cmd db tcp-listen 5433 idle
    guest_cmd db tcp-listen 5434 server-speaks:50
    guest_cmd db tcp-listen 22 idle
    guest_cmd other tcp-listen 80 idle
    guest_cmd web tcp-listen 80 idle
}

# forbidden WHERE: what policy refuses. The same list each time, wherever db is.
forbidden() {
    attempt other db 5432 timeout "not the web server$1"
    attempt web db 22 timeout "not the service$1"
    attempt stranger db 5432 timeout "no VM at all$1"
    attempt db other 80 timeout "the database calls nobody$1"
}

try_policy() {
    headline "3. What is allowed, and what is refused"
    say "db serves ports 5432, 5433, 5434 and 22; web and other serve port 80. The stranger (10.0.0.99) is a" \
        "machine on the same wire that is no VM."
    quietly "starting services" services
    attempt web db 5432 ok
    attempt web db 5434 ok
    pings web db 1
    pings other db 1
    forbidden ""
    attempt other web 80 timeout "no rule, so the default"
    say "" "Every refusal has a reason, and a rule where a rule decided."
    on A rule list
    on A slot show db-nic --explain
    claim_least "packets to db refused by a rule" "$(moat_drops A db-nic to-vm rule)" 1
    claim_least "packets from db refused by the default" "$(moat_drops A db-nic from-vm default)" 1
    claim_least "sessions admitted at db" "$(moat_counter A db-nic sessions.created)" 2
    admin event list --vnic db-nic --limit 5
}
