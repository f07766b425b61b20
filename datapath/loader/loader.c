/* SPDX-License-Identifier: Apache-2.0 */

/* libmoat.so: stands between Open vSwitch and the vhost library.
 *
 * Preloaded, it defines three functions of librte_vhost's public ABI.  Each passes the
 * call to a table of functions (engine_abi.h):
 *
 *   refuse   from load on, and if the engine cannot start: nothing from or to a VM
 *   engine   once it has started, at the first port that the switch registers.  By then
 *            EAL is up and OVS has become a daemon; a constructor would be too early
 *   pass     no filter: the operator's bypass (MOAT_BYPASS=1), or the engine cannot start
 *            and the host says MOAT_ON_DAMAGED=allow
 *
 * The variable LD_PRELOAD is inherited by whatever the switch's start script runs.  In
 * any other program the constructor returns at once and the three functions, if they are
 * called at all, are the real ones.  In the switch it checks that this is a switch that
 * it fits, and ends it before it takes traffic if not.
 *
 * The switch registers one set of callbacks for all of its ports.  The library gets ours,
 * which call the table and the switch's in the order that engine_abi.h promises.  A
 * second set means that another driver (net_vhost) uses the library: its ports are
 * refused, since nobody has checked what they do. */

#include "engine_abi.h"

#include <dlfcn.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include <rte_vhost.h>

#include "exchange.h"
#include "gate.h"
#include "tell.h"

#define ABI_VERSION "DPDK_23"
#define DPDK_RELEASE "DPDK 22.11"
#define SWITCH_NAME "ovs-vswitchd" /* and what begins so */
#define VHOST_LOG_ALL 26           /* VHOST_F_LOG_ALL: the start of a migration */

#define EXPORT __attribute__((visibility("default")))

typedef int register_fn(const char *path, struct rte_vhost_device_ops const *const);

static bool in_switch;
static struct moat_switch vhost;
static register_fn *vhost_register;
static const struct rte_vhost_device_ops *switch_ops; /* the switch's callbacks */
static pthread_mutex_t start_lock = PTHREAD_MUTEX_INITIALIZER;

/* --- tables of our own --- */

static int any_port(const char *path)
{
    (void)path;
    return 0;
}
static void ignore_vid(int vid)
{
    (void)vid;
}
static void ignore_logging(int vid, int on)
{
    (void)vid;
    (void)on;
}

/* Packets stay in the VM's ring: not polled, nothing to free. */
static uint16_t refuse_dequeue(int vid, uint16_t queue, struct rte_mempool *pool,
                               struct rte_mbuf **pkts, uint16_t n)
{
    (void)vid;
    (void)queue;
    (void)pool;
    (void)pkts;
    (void)n;
    return 0;
}
static uint16_t refuse_enqueue(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    (void)vid;
    (void)queue;
    (void)pkts;
    return n;
}

static uint16_t pass_dequeue(int vid, uint16_t queue, struct rte_mempool *pool,
                             struct rte_mbuf **pkts, uint16_t n)
{
    return vhost.dequeue(vid, queue, pool, pkts, n);
}
static uint16_t pass_enqueue(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    return vhost.enqueue(vid, queue, pkts, n);
}

#define OWN_TABLE(NAME)                                                                            \
    static const struct moat_engine_ops NAME = {                                                   \
        .abi = MOAT_ENGINE_ABI,                                                                    \
        .size = sizeof(struct moat_engine_ops),                                                    \
        .version = #NAME,                                                                          \
        .dequeue = NAME##_dequeue,                                                                 \
        .enqueue = NAME##_enqueue,                                                                 \
        .port_register = any_port,                                                                 \
        .connected = ignore_vid,                                                                   \
        .started = ignore_vid,                                                                     \
        .logging = ignore_logging,                                                                 \
        .stopped = ignore_vid,                                                                     \
        .disconnected = ignore_vid,                                                                \
    }
OWN_TABLE(refuse);
OWN_TABLE(pass);

/* Calls of the table that are not about packets, with the table that serves at that time. */
static const struct moat_engine_ops *hold_table(void)
{
    pthread_rwlock_rdlock(&exchange_ports);
    return __atomic_load_n(&gate_table, __ATOMIC_ACQUIRE);
}

static void drop_table(void)
{
    pthread_rwlock_unlock(&exchange_ports);
}

#define CALL_TABLE(FN, ...)                                                                        \
    do {                                                                                           \
        hold_table()->FN(__VA_ARGS__);                                                             \
        drop_table();                                                                              \
    } while (0)

/* --- load: does it fit? --- */

/* The next definition behind ours: of the version that we know in the switch, of any
 * version in other programs, which get it unseen. */
static void *real(const char *name)
{
    return in_switch ? dlvsym(RTLD_NEXT, name, ABI_VERSION) : dlsym(RTLD_NEXT, name);
}

static void find_real(void)
{
    vhost.enqueue = (moat_enqueue_fn *)real("rte_vhost_enqueue_burst");
    vhost_register = (register_fn *)real("rte_vhost_driver_callback_register");
    vhost.dequeue = (moat_dequeue_fn *)real("rte_vhost_dequeue_burst");
}

static bool is_switch_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return !strncmp(slash ? slash + 1 : path, SWITCH_NAME, strlen(SWITCH_NAME));
}

static bool is_switch(void)
{
    char exe[PATH_MAX];
    ssize_t n;

    if (is_switch_name(program_invocation_name))
        return true;
    n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (n <= 0)
        return false;
    exe[n] = 0;
    return is_switch_name(exe);
}

/* Is this symbol bound to our definition?  (Addresses of our functions cannot tell: the
 * linker would give us the other one, too.) */
static bool is_ours(const char *name)
{
    void *bound = dlsym(RTLD_DEFAULT, name);
    Dl_info theirs, ours;

    return bound && dladdr(bound, &theirs) && dladdr(&in_switch, &ours) &&
           theirs.dli_fbase == ours.dli_fbase;
}

/* Why this switch cannot be protected; NULL if it can. */
static const char *misfit(void)
{
    static char text[256];
    const char *(*version)(void) = (const char *(*)(void))real("rte_version");
    const char *release;

    if (!vhost.dequeue || !vhost.enqueue || !vhost_register || !version)
        return "it does not link librte_vhost of ABI " ABI_VERSION
               " dynamically (is it the DPDK build of ovs-vswitchd?)";
    release = version();
    if (strncmp(release, DPDK_RELEASE, strlen(DPDK_RELEASE))) {
        snprintf(text, sizeof text, "it runs on %s, and this build of Moat knows " DPDK_RELEASE,
                 release);
        return text;
    }
    if (!is_ours("rte_vhost_dequeue_burst") || !is_ours("rte_vhost_enqueue_burst") ||
        !is_ours("rte_vhost_driver_callback_register"))
        return "another object takes the vhost library's calls before Moat does";
    return NULL;
}

__attribute__((constructor)) static void on_load(void)
{
    const char *why;

    in_switch = is_switch();
    if (!in_switch)
        return;
    if (!gate_init(&refuse))
        tell(LOG_WARNING, "this kernel has no membarrier(2): the engine cannot be replaced");
    find_real();
    why = misfit();
    if (why) {
        tell(LOG_CRIT, "refusing this switch: %s. Start it without LD_PRELOAD to run without Moat",
             why);
        _exit(EXIT_FAILURE);
    }
}

/* --- the first port: start the engine --- */

static void engine_path(char *out, size_t size)
{
    const char *file = secure_getenv("MOAT_ENGINE");
    char self[PATH_MAX] = "";
    Dl_info info;

    if (file && *file) {
        snprintf(out, size, "%s", file);
        return;
    }
    if (dladdr(&in_switch, &info) && info.dli_fname)
        snprintf(self, sizeof self, "%s", info.dli_fname);
    snprintf(out, size, "%s/libmoat-engine.so", dirname(self));
}

static const struct moat_engine_ops *without_engine(const char *file, const char *why)
{
    const char *mode = secure_getenv("MOAT_ON_DAMAGED");
    bool allow = mode && !strcmp(mode, "allow");

    tell(LOG_CRIT, "the engine %s cannot start: %s", file, why);
    if (mode && *mode && !allow && strcmp(mode, "block"))
        tell(LOG_ERR, "MOAT_ON_DAMAGED=%s is neither block nor allow: block", mode);
    tell(LOG_CRIT, "all VMs of this switch are %s (MOAT_ON_DAMAGED)",
         allow ? "UNPROTECTED: everything passes" : "cut off: nothing passes");
    return allow ? &pass : &refuse;
}

static const struct moat_engine_ops *start_engine(void)
{
    const char *bypass = secure_getenv("MOAT_BYPASS");
    char file[PATH_MAX + 32], err[512] = "no reason given";
    const struct moat_engine_ops *ops;

    if (bypass && !strcmp(bypass, "1")) {
        tell(LOG_CRIT, "MOAT_BYPASS=1: all VMs of this switch are UNPROTECTED");
        return &pass;
    }
    engine_path(file, sizeof file);
    ops = exchange_start(&vhost, file, err, sizeof err);
    return ops ? ops : without_engine(file, err);
}

/* --- what the vhost library calls instead of the switch --- */

static int on_new_device(int vid)
{
    int rc;

    CALL_TABLE(started, vid);
    rc = switch_ops->new_device ? switch_ops->new_device(vid) : 0;
    if (rc)
        CALL_TABLE(stopped, vid);
    return rc;
}

static void on_destroy_device(int vid)
{
    if (switch_ops->destroy_device)
        switch_ops->destroy_device(vid);
    CALL_TABLE(stopped, vid);
}

static int on_vring_state_changed(int vid, uint16_t queue, int enable)
{
    return switch_ops->vring_state_changed ? switch_ops->vring_state_changed(vid, queue, enable)
                                           : 0;
}

static int on_features_changed(int vid, uint64_t features)
{
    CALL_TABLE(logging, vid, (int)(features >> VHOST_LOG_ALL & 1));
    return switch_ops->features_changed ? switch_ops->features_changed(vid, features) : 0;
}

static int on_new_connection(int vid)
{
    CALL_TABLE(connected, vid);
    return switch_ops->new_connection ? switch_ops->new_connection(vid) : 0;
}

static void on_destroy_connection(int vid)
{
    if (switch_ops->destroy_connection)
        switch_ops->destroy_connection(vid);
    CALL_TABLE(disconnected, vid);
}

static struct rte_vhost_device_ops our_ops = {
    .new_device = on_new_device,
    .destroy_device = on_destroy_device,
    .vring_state_changed = on_vring_state_changed,
    .features_changed = on_features_changed,
    .new_connection = on_new_connection,
    .destroy_connection = on_destroy_connection,
};

/* True if these are the switch's callbacks; at the first time starts the engine. */
static bool adopt(const struct rte_vhost_device_ops *ops)
{
    bool known;

    pthread_mutex_lock(&start_lock);
    if (!switch_ops) {
        switch_ops = ops;
        /* Called for each interrupt to a VM: not on our account. */
        our_ops.guest_notified = ops->guest_notified;
        tell_switch_log = true;
        gate_open(start_engine());
    }
    known = switch_ops == ops;
    pthread_mutex_unlock(&start_lock);
    return known;
}

/* --- what the switch calls instead of the vhost library --- */

EXPORT int rte_vhost_driver_callback_register(const char *path,
                                              struct rte_vhost_device_ops const *const ops)
{
    int rc;

    if (!in_switch) {
        if (!vhost_register)
            find_real();
        return vhost_register ? vhost_register(path, ops) : -1;
    }
    if (!path || !ops)
        return -1;
    if (!adopt(ops)) {
        tell(LOG_ERR, "%s: refused, this port does not belong to the switch's own vhost driver",
             path);
        return -1;
    }
    rc = hold_table()->port_register(path);
    drop_table();
    if (rc) {
        tell(LOG_ERR, "%s: refused: %s", path, strerror(-rc));
        return -1;
    }
    return vhost_register(path, &our_ops);
}

/* Not in the switch, and still called: some other program that uses the library. */
static __attribute__((noinline, cold)) bool foreign(void)
{
    if (!vhost.dequeue)
        find_real();
    return vhost.dequeue && vhost.enqueue;
}

/* With the gate closed the VM's packets stay in its ring until the next poll. */
EXPORT uint16_t rte_vhost_dequeue_burst(int vid, uint16_t queue, struct rte_mempool *pool,
                                        struct rte_mbuf **pkts, uint16_t n)
{
    const struct moat_engine_ops *table;
    struct gate_reader *self;

    if (__builtin_expect(!in_switch, 0))
        return foreign() ? vhost.dequeue(vid, queue, pool, pkts, n) : 0;
    table = gate_enter(&self);
    n = __builtin_expect(table != NULL, 1) ? table->dequeue(vid, queue, pool, pkts, n) : 0;
    gate_leave(self);
    return n;
}

/* What is not taken the switch drops: packets for a VM wait in front of the gate. */
EXPORT uint16_t rte_vhost_enqueue_burst(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    const struct moat_engine_ops *table;
    struct gate_reader *self;

    if (__builtin_expect(!in_switch, 0))
        return foreign() ? vhost.enqueue(vid, queue, pkts, n) : 0;
    for (;;) {
        table = gate_enter(&self);
        if (__builtin_expect(table != NULL, 1))
            break;
        gate_leave(self);
        gate_wait();
    }
    n = table->enqueue(vid, queue, pkts, n);
    gate_leave(self);
    return n;
}
