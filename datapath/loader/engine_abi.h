/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_ENGINE_ABI_H
#define MOAT_ENGINE_ABI_H 1

/* What loader (libmoat.so) and engine (libmoat-engine.so) know of each other: two tables
 * of functions.  The loader is permanent and small: it stands in the way of the vhost
 * library's calls, keeps the order of the calls on a port's life, and passes all of them
 * to one table.  The engine is the filter; a table of the loader's own takes its place
 * when it cannot start.
 *
 *   switch --rte_vhost_*--> loader --moat_engine_ops--> engine
 *                              ^                           |
 *                              +------ moat_switch --------+--> vhost library
 *
 * Exchange of the engine.  The loader reads the table's address once per call, so a newer
 * engine takes over by one store; nothing of the older one may be unmapped before each
 * thread has left the call that it was in (its own QSBR readers say so: an engine counts
 * its bursts).  A new engine needs no state of the loader: it finds the connected devices
 * by asking the vhost library for the name of each vid, and the slots in the mapping,
 * whose lock the older engine must have given up.  Between the two a table that refuses
 * everything is in place.  Not done by this version: the loader opens one engine.
 *
 * Appending members is compatible (`size` tells); any other change needs a new number. */

#include <stddef.h>
#include <stdint.h>

#define MOAT_ENGINE_ABI 1
#define MOAT_ENGINE_ENTRY "moat_engine_entry"

struct rte_mbuf;
struct rte_mempool;

/* rte_vhost_get_ifname() of vids at or above this is never asked (MAX_VHOST_DEVICE). */
#define MOAT_MAX_VIDS 1024

typedef uint16_t moat_dequeue_fn(int vid, uint16_t queue_id, struct rte_mempool *,
                                 struct rte_mbuf **, uint16_t n);
typedef uint16_t moat_enqueue_fn(int vid, uint16_t queue_id, struct rte_mbuf **, uint16_t n);

/* The vhost library's own functions.  The engine must not call them by name: it would
 * get the loader's. */
struct moat_switch {
    uint32_t abi, size;
    moat_dequeue_fn *dequeue;
    moat_enqueue_fn *enqueue;
};

struct moat_engine_ops {
    uint32_t abi, size;
    const char *version;

    /* Packet threads. */
    moat_dequeue_fn *dequeue;
    moat_enqueue_fn *enqueue;

    /* The switch registers a port, whose driver has not started.  0, or negative errno:
     * the switch is then told that it cannot have this port. */
    int (*port_register)(const char *path);

    /* The vhost library, on its thread (stopped: sometimes on the switch's main thread).
     * The loader calls the switch's own handler after `connected`, `started` and
     * `logging`, and before `stopped` (the switch has then let go of the device) and
     * `disconnected`.  `started` is taken back by `stopped` if the switch refuses. */
    void (*connected)(int vid);
    void (*started)(int vid);
    void (*logging)(int vid, int on);
    void (*stopped)(int vid);
    void (*disconnected)(int vid);
};

/* Starts the engine; called once, with EAL up.  NULL with the reason in err: there is
 * then no engine, and the host's default decides what VMs get. */
typedef const struct moat_engine_ops *moat_engine_entry_fn(const struct moat_switch *, char *err,
                                                           size_t err_size);

#endif /* datapath/loader/engine_abi.h */
