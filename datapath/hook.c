/* SPDX-License-Identifier: Apache-2.0 */

/* A port is found by its path, once, when a QEMU connects; from then on by the vid, which
 * is all that a burst brings along.
 *
 *   register(path) ............ port exists, blocked; only then may the driver start
 *   connected(vid) ............ ports[vid] = port
 *   started(vid) .............. the slot's state is decided before the switch hears of it
 *   dequeue(vid), enqueue(vid)  bursts, any number of threads
 *   stopped(vid) .............. the switch has let go; may wait for a migration
 *   disconnected(vid) ......... ports[vid] = NULL; the vid may be given to another port
 *
 * A burst of a vid without a port, or on a thread that could not get a context, is refused
 * whole.  The vhost library does not say `disconnected` when the switch deletes a port, so
 * register() clears what an earlier life of the path has left.
 *
 * Packet threads read ports[] and call the pipe, which brackets the burst; no locks,
 * allocation or system calls here.
 *
 * Frames beside the burst (hook_inject()): those for the VM go to its first ring at once, past
 * note and marks, which know only what the switch sends; those from the VM wait in the port
 * (pending.h) and are returned in front of its next burst. */

#include "hook.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <rte_branch_prediction.h>
#include <rte_errno.h>
#include <rte_mbuf.h>
#include <rte_mbuf_dyn.h>
#include <rte_mempool.h>
#include <rte_prefetch.h>
#include <rte_vhost.h>

#include "engine.h"
#include "hook_prefix.h"
#include "pending.h"
#include "pipe.h"
#include "slot.h"

_Static_assert(HOOK_BURST == MOAT_BURST_MAX, "a burst is a burst");

#define PREFETCH_AHEAD 4

/* mbufs of our own, for what a VM gets beside the burst: freed before the call that made them
 * ends.  The switch's pools are not ours to keep an address of: it destroys them, when an MTU
 * changes. */
#define OWN_MBUFS 255
#define OWN_POOL "moat_inject"
#define VM_FIRST_RING 0 /* the guest's first receive queue */

static struct moat_engine *engine;
static struct moat_switch vhost;
static struct rte_mempool *own_mbufs;
static uint64_t unsent_flag; /* on packets that were judged, but not taken by the ring */
static struct moat_port *ports[MOAT_MAX_VIDS];

/* Measured in an object that was opened late: 8 cycles an access, 7 with TLS descriptors,
 * 4 with the initial-exec model, which such an object may not count on.  Once a burst. */
static __thread struct hook_note note;

/* Those of an engine before this one serve again. */
static struct rte_mempool *find_own_mbufs(void)
{
    struct rte_mempool *pool = rte_mempool_lookup(OWN_POOL);

    return pool ? pool
                : rte_pktmbuf_pool_create(OWN_POOL, OWN_MBUFS, 0, 0,
                                          RTE_PKTMBUF_HEADROOM + MOAT_PENDING_FRAME_MAX,
                                          SOCKET_ID_ANY);
}

int hook_init(struct moat_engine *e, const struct moat_switch *sw, char *err, size_t err_size)
{
    static const struct rte_mbuf_dynflag flag = {.name = "moat_dynflag_unsent"};
    int bit = rte_mbuf_dynflag_register(&flag);

    if (bit < 0) {
        snprintf(err, err_size, "no mbuf flag to be had: %s", rte_strerror(rte_errno));
        return -rte_errno;
    }
    own_mbufs = find_own_mbufs();
    if (!own_mbufs) {
        snprintf(err, err_size, "no memory for %u mbufs: %s", OWN_MBUFS, rte_strerror(rte_errno));
        return -rte_errno;
    }
    unsent_flag = UINT64_C(1) << bit;
    vhost = *sw;
    engine = e;
    return 0;
}

/* --- vids and ports --- */

static struct moat_port *port_of(int vid)
{
    return likely((unsigned)vid < MOAT_MAX_VIDS) ? __atomic_load_n(&ports[vid], __ATOMIC_ACQUIRE)
                                                 : NULL;
}

static void set_port(int vid, struct moat_port *port)
{
    if ((unsigned)vid < MOAT_MAX_VIDS)
        __atomic_store_n(&ports[vid], port, __ATOMIC_RELEASE);
}

int hook_port_of_vid(int vid)
{
    const struct moat_port *port = port_of(vid);

    return port ? (int)port->index : -1;
}

void hook_take_over(int (*port_of_vid)(int vid))
{
    for (int vid = 0; vid < MOAT_MAX_VIDS; vid++) {
        int index = port_of_vid(vid);

        if (index >= 0 && (uint32_t)index < engine->n_ports)
            set_port(vid, engine->ports[index]);
    }
}

static struct moat_port *find_port(int vid)
{
    struct moat_port *found = NULL;
    char path[PATH_MAX];

    if (rte_vhost_get_ifname(vid, path, sizeof path))
        return NULL;
    pthread_mutex_lock(&engine->lock);
    for (uint32_t i = 0; i < engine->n_ports && !found; i++)
        if (!strcmp(engine->ports[i]->path, path))
            found = engine->ports[i];
    pthread_mutex_unlock(&engine->lock);
    return found;
}

/* The device that has the port's rings from now on; nothing of an earlier one is left over. */
static void set_device(struct moat_port *port, int vid)
{
    __atomic_store_n(&port->vid, vid, __ATOMIC_RELEASE);
    moat_pending_clear(&port->pending);
}

/* Not if another one has taken its place already. */
static void unset_device(struct moat_port *port, int vid)
{
    if (__atomic_load_n(&port->vid, __ATOMIC_ACQUIRE) == vid)
        set_device(port, -1);
}

int hook_port_register(const char *path)
{
    struct moat_port *port = moat_port_register(engine, path);

    if (!port)
        return errno ? -errno : -EIO;
    set_device(port, -1);
    for (int vid = 0; vid < MOAT_MAX_VIDS; vid++)
        if (port_of(vid) == port)
            set_port(vid, NULL);
    return 0;
}

void hook_connected(int vid)
{
    struct moat_port *port = find_port(vid);

    set_port(vid, port);
    if (port)
        moat_port_connected(port, true);
}

void hook_started(int vid)
{
    struct moat_port *port = port_of(vid);

    if (port) {
        set_device(port, vid);
        moat_port_started(port);
    }
}

void hook_logging(int vid, int on)
{
    struct moat_port *port = port_of(vid);

    if (port)
        moat_port_logging(port, on);
}

void hook_stopped(int vid)
{
    struct moat_port *port = port_of(vid);

    if (port) {
        unset_device(port, vid);
        moat_port_stopped(port);
    }
}

void hook_disconnected(int vid)
{
    struct moat_port *port = port_of(vid);

    set_port(vid, NULL);
    if (port) {
        unset_device(port, vid);
        moat_port_connected(port, false);
    }
}

/* --- bursts --- */

/* Contiguous headers of a packet in segments: in place if the first segment has them,
 * else copied. */
static __attribute__((noinline)) void gather(struct moat_pkt *p, const struct rte_mbuf *m,
                                             uint8_t scratch[MOAT_PARSE_BYTES])
{
    uint32_t len = RTE_MIN(rte_pktmbuf_pkt_len(m), (uint32_t)MOAT_PARSE_BYTES);
    const void *data = rte_pktmbuf_read(m, 0, len, scratch);

    if (data) {
        p->data = data;
        p->len = len;
    }
}

static void count_lost(const struct moat_port *port)
{
    const struct moat_slot *slot = __atomic_load_n(&port->slot, __ATOMIC_ACQUIRE);
    struct moat_thread *self = moat_thread_self(engine);

    if (slot && self)
        moat_count(moat_thread_counters(self, slot->index), MOAT_C_INJECT_LOST, 1);
}

/* Frames to the VM that a burst has made.  They are sent when it has left its QSBR section: the
 * ring's lock may belong to a vhost thread that waits for the engine's lock, whose holder may
 * be waiting for this burst to end. */
static __thread struct {
    bool judging;
    unsigned n;
    struct rte_mbuf *pkts[MOAT_BURST_MAX];
} aside;

static bool put_aside(const uint8_t *frame, uint32_t len)
{
    struct rte_mbuf *m = aside.n < MOAT_BURST_MAX ? rte_pktmbuf_alloc(own_mbufs) : NULL;

    if (!m || len > rte_pktmbuf_tailroom(m)) {
        rte_pktmbuf_free(m);
        return false;
    }
    memcpy(rte_pktmbuf_append(m, (uint16_t)len), frame, len);
    aside.pkts[aside.n++] = m;
    return true;
}

static __attribute__((noinline)) void send_aside(struct moat_port *port)
{
    int vid = __atomic_load_n(&port->vid, __ATOMIC_ACQUIRE);
    unsigned sent = 0;

    if (vid >= 0 && aside.n)
        sent = vhost.enqueue(vid, VM_FIRST_RING, aside.pkts, (uint16_t)aside.n);
    for (unsigned i = sent; i < aside.n; i++)
        count_lost(port);
    if (aside.n)
        rte_pktmbuf_free_bulk(aside.pkts, aside.n); /* the ring has copies */
    aside.n = 0;
}

static uint32_t judge(struct moat_port *port, enum moat_dir dir, struct rte_mbuf **pkts, unsigned n)
{
    uint8_t scratch[MOAT_BURST_MAX][MOAT_PARSE_BYTES]; /* touched by segmented packets only */
    struct moat_pkt burst[MOAT_BURST_MAX];
    struct moat_thread *self = likely(port != NULL) ? moat_thread_self(engine) : NULL;
    uint32_t pass;

    if (unlikely(!self))
        return 0;
    for (unsigned i = 0; i < n && i < PREFETCH_AHEAD; i++)
        rte_prefetch0(rte_pktmbuf_mtod(pkts[i], void *));
    for (unsigned i = 0; i < n; i++) {
        const struct rte_mbuf *m = pkts[i];

        if (i + PREFETCH_AHEAD < n)
            rte_prefetch0(rte_pktmbuf_mtod(pkts[i + PREFETCH_AHEAD], void *));
        burst[i].data = rte_pktmbuf_mtod(m, const uint8_t *);
        burst[i].len = rte_pktmbuf_data_len(m);
        burst[i].total = rte_pktmbuf_pkt_len(m);
        if (unlikely(burst[i].len < burst[i].total && burst[i].len < MOAT_PARSE_BYTES))
            gather(&burst[i], m, scratch[i]);
    }
    aside.judging = true;
    pass = moat_pipe_burst(self, port, dir, burst, n);
    aside.judging = false;
    if (unlikely(aside.n))
        send_aside(port);
    return pass;
}

/* Keeps the admitted packets of one burst, in order; frees the others. */
static unsigned sift(struct rte_mbuf **to, struct rte_mbuf **from, unsigned n, uint32_t pass)
{
    struct rte_mbuf *refused[MOAT_BURST_MAX];
    unsigned kept = 0, n_refused = 0;

    if (likely(pass == hook_mask(n) && to == from))
        return n;
    for (unsigned i = 0; i < n; i++) {
        if (pass >> i & 1)
            to[kept++] = from[i];
        else
            refused[n_refused++] = from[i];
    }
    if (n_refused)
        rte_pktmbuf_free_bulk(refused, n_refused);
    return kept;
}

/* --- frames beside the burst --- */

void hook_inject(struct moat_port *port, enum moat_dir dir, const uint8_t *frame, uint32_t len)
{
    if (dir == MOAT_TO_VM ? !put_aside(frame, len) : !moat_pending_push(&port->pending, frame, len))
        count_lost(port);
    if (dir == MOAT_TO_VM && !aside.judging)
        send_aside(port);
}

/* Up to n frames that wait, in mbufs of the switch's pool.  Without an mbuf they wait on. */
static __attribute__((noinline)) unsigned
take_pending(struct moat_port *port, struct rte_mempool *pool, struct rte_mbuf **pkts, unsigned n)
{
    unsigned k = 0;

    while (k < n && moat_pending_any(&port->pending)) {
        struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
        uint32_t room, len;

        if (!m)
            break;
        room = rte_pktmbuf_tailroom(m);
        len = moat_pending_pop(&port->pending, rte_pktmbuf_mtod(m, uint8_t *), room);
        if (len && len <= room) {
            rte_pktmbuf_append(m, (uint16_t)len);
            pkts[k++] = m;
            continue;
        }
        rte_pktmbuf_free(m);
        if (!len)
            break; /* another thread is at it */
        count_lost(port);
    }
    return k;
}

static bool has_pending(const struct moat_port *port)
{
    return moat_pending_any(&port->pending);
}

/* --- from the VM --- */

uint16_t hook_dequeue(int vid, uint16_t queue, struct rte_mempool *pool, struct rte_mbuf **pkts,
                      uint16_t n)
{
    struct moat_port *port = port_of(vid);
    unsigned got, kept = 0;

    if (unlikely(port && moat_port_holds(port)))
        return 0;
    if (unlikely(port && has_pending(port))) {
        kept = take_pending(port, pool, pkts, n);
        if (kept == n)
            return n; /* the library is never asked for nothing */
    }
    got = kept + vhost.dequeue(vid, queue, pool, pkts + kept, (uint16_t)(n - kept));
    for (unsigned i = kept, m; i < got; i += m) {
        m = RTE_MIN(got - i, (unsigned)MOAT_BURST_MAX);
        kept += sift(pkts + kept, pkts + i, m, judge(port, MOAT_FROM_VM, pkts + i, m));
    }
    return (uint16_t)kept;
}

/* --- to the VM --- */

struct ring {
    struct moat_port *port;
    int vid;
    uint16_t queue;
};

static uint32_t ring_judge(void *ring_, struct rte_mbuf **pkts, unsigned n)
{
    const struct ring *ring = ring_;

    return judge(ring->port, MOAT_TO_VM, pkts, n);
}

static unsigned ring_send(void *ring_, struct rte_mbuf **pkts, unsigned n)
{
    const struct ring *ring = ring_;

    return vhost.enqueue(ring->vid, ring->queue, pkts, (uint16_t)n);
}

static void ring_mark(void *ring_, struct rte_mbuf *m)
{
    (void)ring_;
    m->ol_flags |= unsent_flag;
}

static bool ring_unmark(void *ring_, struct rte_mbuf *m)
{
    bool marked = (m->ol_flags & unsent_flag) != 0;

    (void)ring_;
    m->ol_flags &= ~unsent_flag;
    return marked;
}

uint16_t hook_enqueue(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    static const struct hook_io io = {ring_judge, ring_send, ring_mark, ring_unmark};
    struct ring ring = {port_of(vid), vid, queue};

    return hook_enqueue_burst(&note, &io, &ring, vid, queue, pkts, n);
}
