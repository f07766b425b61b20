# shellcheck shell=bash
# Hosts: a namespace each, with a local OVS database, a switch on DPDK and the bridge br0.
# Files of host A are in $TESTBED_DIR/hosts/A: conf.db, db.sock, ovs-vswitchd.log, ...
#
# Knobs, read when a host or its switch starts:
#   MOAT_PRELOAD   path of libmoat.so, to be preloaded into the switch
#   HOST_ENV       array of NAME=VALUE for the switch
#   HOST_MAXSLEEP  pmd-maxsleep in us (200); "none" leaves it out, for benchmarks
#   HOST_TSO       true: userspace-tso-enable, so guests may send large segments and leave
#                  checksums out. Guests negotiate when they boot: start them behind the switch
#   HOST_PMD_MASK  pmd-cpu-mask (odd hosts 2, even hosts 1)

vswitchd=/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk
switch_pages=370 # 2-MiB pages that one switch takes

host_dir() { printf '%s\n' "$TESTBED_DIR/hosts/$1"; }
host_ns() { printf '%s\n' "$TESTBED_ID-$1"; }
host_exec() { # HOST COMMAND...
    local host=$1
    shift
    ip netns exec "$(host_ns "$host")" "$@"
}

# host_index HOST: 1 for the first host of the test-bed, and so on.
host_index() { cat "$(host_dir "$1")/index"; }

# host_addr HOST: its address on the management network.
host_addr() { printf '10.99.0.%d\n' $((10 + $(host_index "$1"))); }

# host_rundir HOST: the run dir for Moat's own programs of that host.
host_rundir() { printf '%s/moat\n' "$(host_dir "$1")"; }

# host_mapping HOST: the file of the session table.
host_mapping() { printf '/dev/hugepages/moat-%s-%s.tables\n' "$TESTBED_ID" "$1"; }

# host_env HOST: the environment of the host's programs, one NAME=VALUE a line.
host_env() {
    printf '%s\n' "OVS_RUNDIR=$(host_dir "$1")" "OVS_LOGDIR=$(host_dir "$1")" "OVS_DBDIR=$(host_dir "$1")" \
        "MOAT_RUNDIR=$(host_rundir "$1")" "MOAT_MAPPING=$(host_mapping "$1")"
    [ -z "${HOST_ENV+x}" ] || [ ${#HOST_ENV[@]} -eq 0 ] || printf '%s\n' "${HOST_ENV[@]}"
}

# host_spawn HOST NAME COMMAND...: starts a program on a host, with host_env; its output
# goes to NAME.out in the host's dir, its pid is recorded as HOST-NAME.
host_spawn() {
    local host=$1 name=$2 vars
    shift 2
    mapfile -t vars < <(host_env "$host")
    testbed_spawn "$host-$name" "$(host_dir "$host")/$name.out" ip netns exec "$(host_ns "$host")" env "${vars[@]}" "$@"
}

# host_start NAME: a new host with database, switch and bridge br0.
host_start() {
    local host=$1 dir n
    dir=$(host_dir "$host")
    n=$(($(find "$TESTBED_DIR/hosts" -mindepth 1 -maxdepth 1 -type d | wc -l) + 1))
    mkdir -p "$dir/moat"
    printf '%s\n' "$n" >"$dir/index"
    netns_add "$(host_ns "$host")"
    mgmt_attach "$(host_ns "$host")" "mg-$host" "$(host_addr "$host")"
    testbed_file "$(host_mapping "$host")"
    ovsdb-tool create "$dir/conf.db" /usr/share/openvswitch/vswitch.ovsschema
    host_ovsdb_start "$host"
    host_configure "$host"
    host_switch_start "$host"
    host_vsctl "$host" add-br br0 -- set bridge br0 datapath_type=netdev fail-mode=standalone
}

# host_configure HOST: DPDK settings; takes effect at the start of the switch.
host_configure() {
    local host=$1 mask=${HOST_PMD_MASK:-$((2 - ($(host_index "$1") - 1) % 2))} settings
    settings=(dpdk-init=true dpdk-socket-mem=256 dpdk-lcore-mask=1 "pmd-cpu-mask=$mask"
        "dpdk-extra=\"--no-pci --file-prefix=$TESTBED_ID-$host\"")
    [ "${HOST_MAXSLEEP:-200}" = none ] || settings+=("pmd-maxsleep=${HOST_MAXSLEEP:-200}")
    host_vsctl "$host" --no-wait init -- set Open_vSwitch . "external_ids:system-id=$host" "external_ids:hostname=$host" \
        "${settings[@]/#/other_config:}"
}

# host_ovsdb_start HOST / host_ovsdb_stop HOST [SIGNAL]: the local database server.
host_ovsdb_start() {
    local dir
    dir=$(host_dir "$1")
    host_spawn "$1" ovsdb ovsdb-server "$dir/conf.db" --remote="punix:$dir/db.sock" --unixctl="$dir/ovsdb-server.ctl" \
        --pidfile="$dir/ovsdb-server.pid" --log-file="$dir/ovsdb-server.log" -vconsole:off
    WAIT_LOG=$dir/ovsdb.out wait_for 10 "the database of host $1" ovs-vsctl -t 2 --db="unix:$dir/db.sock" --no-wait show
}
host_ovsdb_stop() { testbed_kill "$1-ovsdb" "${2:-TERM}"; }

free_pages=/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages
host_pages_free() { [ "$(<"$free_pages")" -ge "$switch_pages" ]; }

# host_switch_start HOST: ovs-vswitchd, with MOAT_PRELOAD if that is set; host_switch_spawn HOST does not
# wait until it is up.
host_switch_start() {
    host_switch_spawn "$1" || return 1
    WAIT_LOG=$(host_dir "$1")/ovs-vswitchd.log wait_for 30 "the switch of host $1" host_switch_up "$1"
}
host_switch_spawn() {
    local host=$1 dir preload=()
    dir=$(host_dir "$host")
    # Those of a switch that has just died come back a little after it.
    if ! wait_for 5 "$switch_pages free hugepages" host_pages_free 2>/dev/null; then
        tb_fail "only $(<"$free_pages") 2-MiB hugepages are free, a switch needs $switch_pages: end other DPDK programs or run MOAT_HUGEPAGES=2200 scripts/setup"
        return 1
    fi
    if [ -n "${MOAT_PRELOAD:-}" ]; then
        [ -e "$MOAT_PRELOAD" ] || { tb_fail "MOAT_PRELOAD: no file $MOAT_PRELOAD"; return 1; }
        preload=("LD_PRELOAD=$MOAT_PRELOAD")
    fi
    host_vsctl "$host" --no-wait set Open_vSwitch . "other_config:userspace-tso-enable=${HOST_TSO:-false}"
    host_spawn "$host" switch env "${preload[@]}" "$vswitchd" "unix:$dir/db.sock" --unixctl="$dir/ovs-vswitchd.ctl" \
        --pidfile="$dir/ovs-vswitchd.pid" --log-file="$dir/ovs-vswitchd.log" -vconsole:off
}

# host_switch_up HOST: succeeds when the switch has DPDK up and has read its configuration.
host_switch_up() {
    testbed_alive "$1-switch" || return 1
    [ "$(host_vsctl "$1" --no-wait get Open_vSwitch . dpdk_initialized)" = true ] &&
        host_appctl "$1" version
}

# host_switch_stop HOST [SIGNAL]: TERM leaves in order, KILL is a crash.
host_switch_stop() {
    testbed_kill "$1-switch" "${2:-TERM}"
    # What the dead switch wrote down must not be taken for the next one's.
    host_vsctl "$1" --no-wait set Open_vSwitch . dpdk_initialized=false 2>/dev/null || true
}
host_switch_restart() { # HOST [SIGNAL]
    host_switch_stop "$@"
    host_switch_start "$1"
}

# host_stop HOST: switch and database.
host_stop() {
    host_switch_stop "$1"
    host_ovsdb_stop "$1"
}

# host_vsctl / host_appctl / host_ofctl HOST ARGS...: the OVS tools on that host. Give
# host_appctl the switch's commands only; other daemons: host_ctl HOST SOCKET ARGS...
host_vsctl() {
    local dir
    dir=$(host_dir "$1")
    shift
    ovs-vsctl -t "${VSCTL_TIMEOUT:-15}" --db="unix:$dir/db.sock" "$@"
}
host_appctl() {
    local dir
    dir=$(host_dir "$1")
    shift
    ovs-appctl -T 15 -t "$dir/ovs-vswitchd.ctl" "$@"
}
host_ctl() {
    local socket=$2
    shift 2
    ovs-appctl -T 15 -t "$socket" "$@"
}
host_ofctl() {
    local dir
    dir=$(host_dir "$1")
    shift
    OVS_RUNDIR=$dir ovs-ofctl -O OpenFlow14 -t 15 "$@"
}

# host_link A B: a wire between the two br0: a veth pair with a DPDK af_packet port at each end.
host_link() {
    local a=$1 b=$2
    ip -n "$(host_ns "$a")" link add "to-$b" type veth peer name "to-$a" netns "$(host_ns "$b")"
    host_wire "$a" "$b"
    host_wire "$b" "$a"
}
host_wire() { # HOST PEER: one end
    ip -n "$(host_ns "$1")" link set "to-$2" up promisc on
    host_vsctl "$1" add-port br0 "wire-$2" -- set interface "wire-$2" type=dpdk \
        "options:dpdk-devargs=\"net_af_packet_$2,iface=to-$2\""
    host_port_ok "$1" "wire-$2"
}

# host_port_ok HOST PORT: fails, and says why, if the switch could not make the port.
host_port_ok() {
    local error
    error=$(host_vsctl "$1" get interface "$2" error | tr -d '"')
    if [ "$error" = "[]" ]; then return 0; fi
    tb_tail "$(host_dir "$1")/ovs-vswitchd.log"
    tb_fail "host $1, port $2: $error"
}

# host_port_add HOST VM SOCKET IFACE_ID [KEY=VALUE...]: a vhost-user port for a guest, named
# vhu-VM; the rest are more external_ids (values are quoted here).
host_port_add() {
    local host=$1 vm=$2 socket=$3 iface_id=$4 ids=() pair
    shift 4
    for pair in "iface-id=$iface_id" "$@"; do
        ids+=("external_ids:${pair%%=*}=\"${pair#*=}\"")
    done
    mkdir -p "$(dirname "$socket")"
    host_vsctl "$host" add-port br0 "vhu-$vm" -- set interface "vhu-$vm" type=dpdkvhostuserclient \
        "options:vhost-server-path=\"$socket\"" "${ids[@]}"
    host_port_ok "$host" "vhu-$vm"
}

# host_port_del HOST VM.
host_port_del() { host_vsctl "$1" --if-exists del-port br0 "vhu-$2"; }

# host_port_up HOST VM: is a guest connected, with a queue that a PMD thread polls? (Asks the
# switch: link_state in the database is written before the port is ready and may stay "down".)
host_port_up() { host_appctl "$1" dpif-netdev/pmd-rxq-show | grep -qE "port: vhu-$2 +queue-id: +[0-9]+ \(enabled\)"; }

# host_port_has_mtu HOST VM MTU. host_port_stat HOST VM NAME: a figure that the vhost library keeps
# of a queue, such as rx_q0_good_packets or tx_q1_size_1519_max_packets; rx is what the guest
# sends, whether it is refused afterwards or not.
host_port_has_mtu() { [ "$(host_vsctl "$1" get interface "vhu-$2" mtu)" = "$3" ]; }
host_port_stat() { host_ofctl "$1" dump-ports br0 "vhu-$2" | sed -n "s/.*\b$3=\([0-9]*\).*/\1/p"; }

# host_forget_macs: has every switch learn afresh where MAC addresses live. By itself a bridge
# in standalone mode notices that a guest has moved only when its main thread next wakes up,
# up to half a second later: its flows go on sending to the old port, or drop. That would hide
# what a migration costs. (Bridges under a controller have explicit flows and no such delay.)
host_forget_macs() {
    local dir
    for dir in "$TESTBED_DIR"/hosts/*/; do
        dir=${dir%/}
        if testbed_alive "${dir##*/}-switch"; then host_appctl "${dir##*/}" fdb/flush br0 >/dev/null || return 1; fi
    done
}
