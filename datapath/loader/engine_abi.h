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
 * Exchange of the engine, while packets flow:
 *
 *   engine's control thread     loader                              the new engine
 *   replace_begin(file) ------> a thread of its own: opens the file,
 *   (goes on serving)           calls the entry, with `before` -----> entry: makes all it needs
 *   replace_end() ------------> ready?                              > prepare: what has changed
 * since closes the gate (gate.h), and stops the calls on ports' lives ---------> take_over: the
 * rest opens it to the new table           packets go to it answers, leaves its thread  joins that
 * thread ----------------> serve: its control thread destroys the old engine, closes its file
 *
 * What goes from engine to engine is their own business (`handover`, ../handover.h).  Until
 * take_over has returned 0 the old engine is in charge and whole, and an exchange can be called
 * off.
 *
 * Appending members is compatible (`size` tells); any other change needs a new number. */

#include <stddef.h>
#include <stdint.h>

#define MOAT_ENGINE_ABI 2
#define MOAT_ENGINE_ENTRY "moat_engine_entry"

struct rte_mbuf;
struct rte_mempool;

/* Vids are below this (MAX_VHOST_DEVICE). */
#define MOAT_MAX_VIDS 1024

typedef uint16_t moat_dequeue_fn(int vid, uint16_t queue_id, struct rte_mempool *,
                                 struct rte_mbuf **, uint16_t n);
typedef uint16_t moat_enqueue_fn(int vid, uint16_t queue_id, struct rte_mbuf **, uint16_t n);

/* What an exchange took. */
struct moat_exchanged {
    uint32_t prepare_ms; /* until the new engine was ready */
    uint32_t gate_us;    /* how long packets had to wait */
    uint32_t tries;      /* of closing the gate */
    uint32_t pad;
    char version[32]; /* of the new engine */
};

struct moat_switch {
    uint32_t abi, size;
    /* The vhost library's own functions.  The engine must not call them by name: it would
     * get the loader's. */
    moat_dequeue_fn *dequeue;
    moat_enqueue_fn *enqueue;

    const char *file;   /* that the engine is loaded from; valid during the entry's call */
    const void *before; /* `handover` of the engine that serves now; NULL: there is none */

    /* For the serving engine's control thread, which must be joinable.  begin: starts to load the
     * engine in `file` (empty: the one that the switch starts with); 0, or negative errno.  end:
     * -EAGAIN: not yet, ask again soon, the packets have not noticed; 0: replaced, the thread must
     * end now and touch nothing but what it owns; another negative errno: called off. */
    int (*replace_begin)(const char *file, char *err, size_t err_size);
    int (*replace_end)(struct moat_exchanged *, char *err, size_t err_size);
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

    /* Exchange.  All but `handover` are called once, prepare any number of times.  All return 0 or
     * negative errno with the reason in err; -EAGAIN: it may go later. */
    const void *handover; /* for an engine that comes after */
    int (*prepare)(char *err,
                   size_t err_size); /* the one before serves, its control thread waits */
    int (*take_over)(char *err, size_t err_size); /* no packet and no port event is under way */
    void (*serve)(const struct moat_exchanged *); /* at last: its control thread may begin; NULL:
                                                   * there was no engine before */
    void (*destroy)(void); /* nobody is in it, and its control thread has ended or not begun */
};

/* Starts the engine; called once for each file that was opened, with EAL up.  NULL with the reason
 * in err: there is then no engine, and the host's default decides what VMs get, or, if
 * sw->before was set, the one before goes on. */
typedef const struct moat_engine_ops *moat_engine_entry_fn(const struct moat_switch *, char *err,
                                                           size_t err_size);

#endif /* datapath/loader/engine_abi.h */
