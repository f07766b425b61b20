# shellcheck shell=bash
# The whole product on the test-bed: source this behind testbed.sh. Switches run with
# libmoat.so, each host has its moatd, the Moat database is the central database, and VMs
# are in it before they start.
#
#   moat_init                               # testbed_init, and: is there a build?
#   moat_start A B                          # database, hosts, agents, wires
#   moat_vm web 10.0.0.1 label role=web     # in the inventory
#   moat_guests A web db                    # boots them, gives them their addresses
#   moat_admin policy apply shop.moat --wait 20
#   moat_settled 2
#   ctl A slot list
#   moat_migrate db A B
#
# Knobs: MOAT_BUILD (build/release of this tree), MOATD_ARGS (array: more options of moatd).
: "${testbed_lib:?source testbed.sh}"

moat_root=$(cd "$testbed_lib/../.." && pwd)
MOAT_BUILD=${MOAT_BUILD:-$moat_root/build/release}
MOAT_PRELOAD=$MOAT_BUILD/datapath/libmoat.so
switch_pages=430     # 2-MiB pages of a switch with its session table
MOAT_NETWORK=lan     # the one network, 10.0.0.0/24 and fd00::/64
MOAT_PEER_PORT=6650  # where agents listen for each other

# moat_init: testbed_init with the product in place; fails if it is not built.
moat_init() {
    local file
    for file in "$MOAT_PRELOAD" "$MOAT_BUILD/datapath/libmoat-engine.so" "$(moat_program moatd)" "$(moat_program moatctl)"; do
        [ -e "$file" ] || { tb_fail "$file is missing: run scripts/build"; return 1; }
    done
    testbed_init
}

# moat_program moatd|moatctl: its path in the build.
moat_program() {
    case $1 in
    moatd) printf '%s/control/agent/moatd\n' "$MOAT_BUILD" ;;
    *) printf '%s/control/cli/%s\n' "$MOAT_BUILD" "$1" ;;
    esac
}

# moat_start HOST...: certificates, the database, and the hosts with a wire between each two.
moat_start() {
    local i j hosts=("$@")
    pki_init "$@"
    central_start "$moat_root/control/schema/moat.ovsschema"
    # Agents take a database without this row for one that has lost its contents.
    central_client transact '["Moat", {"op": "insert", "table": "Global", "row": {}}]' >/dev/null
    for i in "${!hosts[@]}"; do
        host_start "${hosts[i]}"
        moat_agent_start "${hosts[i]}"
        for ((j = 0; j < i; j++)); do host_link "${hosts[j]}" "${hosts[i]}"; done
    done
    moat_admin network add "$MOAT_NETWORK" subnet=10.0.0.0/24 subnet=fd00::/64
}

# --- agents ---

# moat_agent_start HOST / moat_agent_stop HOST [SIGNAL] / moat_agent_restart HOST [SIGNAL].
# The start waits until the agent answers, not until it has found the database.
moat_agent_start() {
    local host=$1 dir options
    dir=$(host_rundir "$host")
    mapfile -t options < <(pki_options "$host")
    [ -e "$(moat_host_conf "$host")" ] || : >"$(moat_host_conf "$host")"
    host_spawn "$host" moatd "$(moat_program moatd)" --host="$host" --db="$(central_remote)" \
        --ovsdb="unix:$(host_dir "$host")/db.sock" --ctl="$dir/moat.ctl" --host-config="$(moat_host_conf "$host")" \
        --listen="pssl:$MOAT_PEER_PORT:$(host_addr "$host")" --advertise="ssl:$(host_addr "$host"):$MOAT_PEER_PORT" \
        "${options[@]}" --unixctl="$dir/moatd.ctl" --log-file="$(host_dir "$host")/moatd.log" -vconsole:off \
        ${MOATD_ARGS[@]+"${MOATD_ARGS[@]}"}
    WAIT_LOG=$(host_dir "$host")/moatd.out wait_for 15 "moatd of host $host" moat_agent_up "$host"
}
moat_agent_up() { testbed_alive "$1-moatd" && moat_agent_ctl "$1" version; }
moat_agent_stop() { testbed_kill "$1-moatd" "${2:-TERM}"; }
moat_agent_restart() {
    moat_agent_stop "$@"
    moat_agent_start "$1"
}

# moat_agent_ctl HOST COMMAND...: asks a running moatd, as in: moat_agent_ctl A moat/status
moat_agent_ctl() {
    local host=$1
    shift
    host_ctl "$host" "$(host_rundir "$host")/moatd.ctl" "$@"
}

# moat_host_conf HOST: the host's own defaults. moat_host_set HOST [KEY=VALUE...] replaces
# them; the agent takes them when it starts.
moat_host_conf() { printf '%s/host.conf\n' "$(host_rundir "$1")"; }
moat_host_set() { printf '%s\n' "${@:2}" >"$(moat_host_conf "$1")"; }

# --- moatctl ---

# moat_ctl_env HOST: what moatctl needs to know there, one NAME=VALUE a line.
moat_ctl_env() {
    local dir
    dir=$(pki_dir)
    printf '%s\n' "MOAT_DB=$(central_remote)" "MOAT_CTL=$(host_rundir "$1")/moat.ctl" "MOAT_CA_CERT=$dir/cacert.pem" \
        "MOAT_PRIVATE_KEY=$dir/moatctl-privkey.pem" "MOAT_CERTIFICATE=$dir/moatctl-cert.pem"
}

# ctl HOST ARGS...: moatctl on a host, as its operator would use it.
ctl() {
    local host=$1 vars
    shift
    mapfile -t vars < <(moat_ctl_env "$host")
    host_exec "$host" env "${vars[@]}" "$(moat_program moatctl)" "$@"
}

# moat_admin ARGS...: moatctl on the machine of the database, without an engine.
moat_admin() { mgmt_exec env "MOAT_DB=$(central_local)" MOAT_CTL=/nonexistent "$(moat_program moatctl)" "$@"; }

# --- VMs ---

# moat_vm NAME ADDRESS[,ADDRESS6] [WORD...]: puts a VM and its vNIC NAME-nic into the inventory;
# WORDs as of `moatctl vm add`. Its MAC comes from the last byte of the IPv4 address. With "-"
# in front of the address the inventory does not know it.
moat_vm() {
    local name=$1 addr=${2#-} addr6 mac known=()
    [[ $2 != *,* ]] || addr6=${addr#*,}
    addr=${addr%,*}
    [[ $2 = -* ]] || known=("address=$addr" ${addr6:+"address=$addr6"})
    shift 2
    printf -v mac '02:00:00:00:00:%02x' "${addr##*.}"
    mkdir -p "$(guest_dir "$name")"
    printf '%s\n' "$mac" >"$(guest_dir "$name")/mac"
    printf '%s\n' "$addr" >"$(guest_dir "$name")/addr"
    printf '%s\n' "${addr6:-}" >"$(guest_dir "$name")/addr6"
    moat_admin vm add "$name" "$@"
    moat_admin vm vnic add "$name" "$name-nic" "mac=$mac" "network=$MOAT_NETWORK" ${known[@]+"${known[@]}"}
}
moat_mac() { cat "$(guest_dir "$1")/mac"; }
moat_addr() { cat "$(guest_dir "$1")/addr"; }
moat_addr6() { cat "$(guest_dir "$1")/addr6"; }

# moat_guests HOST NAME...: boots them there, all at once, and gives them their addresses.
moat_guests() {
    local host=$1 name
    shift
    for name; do guest_add "$host" "$name" "$(moat_mac "$name")" "$name-nic"; done
    guest_wait_boot "$@"
    for name; do
        guest_cmd "$name" ip "$(moat_addr "$name")/24"
        [ -z "$(moat_addr6 "$name")" ] || guest_cmd "$name" ip "$(moat_addr6 "$name")/64"
    done
}

# moat_migrate NAME FROM TO: guest_migrate, then until the agents have recorded it. Prints
# QEMU's figures.
moat_migrate() {
    local before
    before=$(moat_epoch "$1-nic")
    guest_migrate "$@" || return 1
    WAIT_LOG=$(host_dir "$3")/moatd.log wait_for "${MOAT_MIGRATE_TIMEOUT:-20}" "the agents to hand over $1" moat_moved "$1-nic" "$3" "$before"
}
moat_moved() { # VNIC TO EPOCH
    moat_admin --format json migration list |
        jq -e --arg v "$1" --arg to "$2" --argjson e "$3" \
            '[.[] | select(.vnic == $v)] | last | .destination == $to and .epoch > $e and .state == "completed"' &&
        [ "$(moat_holder "$1")" = "$2" ]
}

# --- asking ---

# moat_vnic VNIC FIELD: what the database says about it. moat_holder, moat_epoch VNIC.
moat_vnic() { moat_admin --format json vm show "${1%-nic}" | jq -r --arg v "$1" --arg f "$2" '[.. | objects | select(.vnic? == $v)][0][$f] // empty'; }
moat_holder() { moat_vnic "$1" holder; }
moat_epoch() { moat_vnic "$1" epoch; }

# moat_generation: of the policy in force.
moat_generation() { moat_admin --format json policy show | jq -r .generation; }

# moat_slot HOST VNIC FIELD: of a slot: state, generation, epoch, sessions, ruleset, ...
moat_slot() { ctl "$1" --format json slot show "$2" 2>/dev/null | jq -r --arg f "$3" '.[0][$f]'; }
moat_slot_is() { # HOST VNIC FIELD VALUE
    [ "$(moat_slot "$1" "$2" "$3")" = "$4" ]
}

# moat_counter HOST VNIC NAME: a named counter. moat_drops HOST VNIC from-vm|to-vm REASON:
# how many packets were refused.
moat_counter() { ctl "$1" --format json slot show "$2" | jq -r --arg c "$3" '.[0].counters[$c] // 0'; }
moat_drops() {
    ctl "$1" --format json slot show "$2" |
        jq -r --arg d "$3" --arg r "$4" '[.[0].drops[] | select(.direction == $d and .reason == $r) | .packets] | add // 0'
}

# moat_evidence VNIC KEY: of its latest migration, such as sessions-sent.
moat_evidence() {
    moat_admin --format json migration list |
        jq -r --arg v "$1" --arg k "$2" '[.[] | select(.vnic == $v)] | last | .evidence[$k] // empty'
}

# moat_settled N [SECONDS]: until N vNICs enforce what is intended, and none differs.
moat_settled() { wait_for "${2:-20}" "$1 vNICs to enforce what is intended" moat_settled_now "$1"; }
moat_settled_now() {
    # It exits 1 here: there is no engine beside the database.
    { moat_admin --format json status 2>/dev/null || true; } |
        jq -e --argjson n "$1" '.cluster | .vnics_enforced == $n and .vnics_different == 0'
}
