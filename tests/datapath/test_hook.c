/* SPDX-License-Identifier: Apache-2.0 */

/* The hook with real mbufs, a real filter core and a vhost library of straw: who gets
 * which packet, that every refused one is freed, that segments are gathered; what guests
 * with offloads and several queues send, what the switch does to packets on their way, and
 * frames beside the burst. */

#include "datapath/hook.h"

#include <check.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <rte_eal.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_vhost.h>

#include "datapath/engine.h"
#include "datapath/parse.h"
#include "datapath/pending.h"
#include "datapath/slot.h"
#include "tests/lib/blob.h"

#define N_MBUFS 511
#define FRAME 60
#define VID_OPEN 3    /* its slot lets UDP port 53 pass */
#define VID_BLOCKED 4 /* a port without a slot */
#define VID_UNKNOWN 7
#define REJECTED 99 /* UDP port of packets whose sender is told */

static struct rte_mempool *pool;
static struct moat_engine *engine;
static const char *names[MOAT_MAX_VIDS];
static struct rte_mbuf *from_vm[64];
static uint16_t n_from_vm, room, n_taken, n_polls, n_sends;
static struct rte_mbuf *taken[64];

/* A copy of the last packet that a VM got, as the guest sees it. */
static struct {
    int vid;
    uint16_t queue;
    uint32_t len;
    uint64_t ol_flags;
    uint8_t data[MOAT_PENDING_FRAME_MAX];
} got;

/* In place of the vhost library's. */
int rte_vhost_get_ifname(int vid, char *buf, size_t len)
{
    if (!names[vid])
        return -1;
    snprintf(buf, len, "%s", names[vid]);
    return 0;
}

static uint16_t vhost_dequeue(int vid, uint16_t queue, struct rte_mempool *mp,
                              struct rte_mbuf **pkts, uint16_t n)
{
    uint16_t k = n < n_from_vm ? n : n_from_vm;

    (void)vid;
    (void)queue;
    (void)mp;
    n_polls++;
    memcpy(pkts, from_vm, k * sizeof *pkts);
    n_from_vm = 0;
    return k;
}

static uint16_t vhost_enqueue(int vid, uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    uint16_t k = n < room ? n : room;

    n_sends++;
    /* The ring's lock may belong to one who waits until all bursts have ended. */
    ck_assert(moat_qsbr_passed(&engine->qsbr, moat_qsbr_token(&engine->qsbr)));
    if (k) {
        const struct rte_mbuf *m = pkts[k - 1];

        got.vid = vid;
        got.queue = queue;
        got.len = rte_pktmbuf_pkt_len(m);
        got.ol_flags = m->ol_flags;
        memcpy(got.data, rte_pktmbuf_mtod(m, void *),
               RTE_MIN(sizeof got.data, (size_t)rte_pktmbuf_data_len(m)));
    }
    memcpy(taken + n_taken, pkts, k * sizeof *pkts);
    n_taken += k;
    room -= k;
    return k;
}

/* 10.0.0.1 -> 10.0.0.2, UDP, or the other way round. */
static struct rte_mbuf *packet(uint16_t dport, bool to_vm)
{
    struct rte_mbuf *m = rte_pktmbuf_alloc(pool);
    uint8_t *p;

    ck_assert_ptr_nonnull(m);
    p = (uint8_t *)rte_pktmbuf_append(m, FRAME);
    ck_assert_ptr_nonnull(p);
    memset(p, 0, FRAME);
    p[0] = p[6] = 2;
    p[5] = to_vm ? 1 : 2;
    p[11] = to_vm ? 2 : 1;
    p[12] = 8;
    memcpy(p + 14, "\x45\0\0\x2e\0\0\0\0\x40\x11\0\0\x0a\0\0\1\x0a\0\0\2", 20);
    if (to_vm) {
        p[29] = 2;
        p[33] = 1;
    }
    p[34] = 0x10; /* source port 4096 + */
    p[36] = (uint8_t)(dport >> 8);
    p[37] = (uint8_t)dport;
    p[39] = 26; /* length */
    return m;
}

/* The same bytes in segments of at most `size`. */
static struct rte_mbuf *cut(struct rte_mbuf *m, uint16_t size)
{
    struct rte_mbuf *head = NULL;

    for (uint16_t off = 0, n; off < FRAME; off += n) {
        struct rte_mbuf *s = rte_pktmbuf_alloc(pool);
        char *data;

        n = RTE_MIN(size, (uint16_t)(FRAME - off));
        ck_assert_ptr_nonnull(s);
        data = rte_pktmbuf_append(s, n);
        ck_assert_ptr_nonnull(data);
        memcpy(data, rte_pktmbuf_mtod_offset(m, char *, off), n);
        if (head)
            ck_assert_int_eq(rte_pktmbuf_chain(head, s), 0);
        else
            head = s;
    }
    rte_pktmbuf_free(m);
    return head;
}

static void claim_open(enum moat_slot_state state)
{
    struct moat_slot_conf c = {.vnic = "v",
                               .path = "/open",
                               .mac = {2, 0, 0, 0, 0, 1},
                               .n_addrs = 1,
                               .state = (uint8_t)state,
                               .addrs = {{.family = 4, .plen = 32, .addr = {10, 0, 0, 1}}}};
    struct blob *b = blob_create();
    struct moat_rule *r = blob_rule(b, MOAT_ALLOW, "dns");
    char err[256] = "";
    size_t len;
    uint8_t *blob;

    r->proto = 17;
    r->dport_lo = r->dport_hi = 53;
    r = blob_rule(b, MOAT_REJECT, "told");
    r->proto = 17;
    r->dport_lo = r->dport_hi = REJECTED;
    blob = blob_emit(b, &len);
    moat_settings_init(&c.settings);
    ck_assert_msg(!moat_slot_claim(engine, &c, err, sizeof err), "%s", err);
    ck_assert_msg(!moat_slot_publish(engine, "v", blob, len, err, sizeof err), "%s", err);
    free(blob);
    blob_destroy(b);
}

static void setup(void)
{
    static const struct moat_switch sw = {.abi = MOAT_ENGINE_ABI,
                                          .size = sizeof sw,
                                          .dequeue = vhost_dequeue,
                                          .enqueue = vhost_enqueue};
    struct moat_engine_conf conf = {.n_slots = 4, .n_sessions = 1024, .inject = hook_inject};
    char *args[] = {(char *)"test",
                    (char *)"--no-huge",
                    (char *)"--no-pci",
                    (char *)"--no-shconf",
                    (char *)"--no-telemetry",
                    (char *)"-m",
                    (char *)"64",
                    (char *)"--log-level=4",
                    (char *)"-l",
                    (char *)"0"};
    char err[256] = "";

    ck_assert_int_ge(rte_eal_init(10, args), 0);
    pool = rte_pktmbuf_pool_create("test", N_MBUFS, 0, 0, 2048, SOCKET_ID_ANY);
    ck_assert_ptr_nonnull(pool);
    engine = moat_engine_create(&conf, err, sizeof err);
    ck_assert_msg(engine != NULL, "%s", err);
    ck_assert_msg(!hook_init(engine, &sw, err, sizeof err), "%s", err);
    ck_assert_int_eq(hook_port_register("/open"), 0);
    ck_assert_int_eq(hook_port_register("/blocked"), 0);
    names[VID_OPEN] = "/open";
    names[VID_BLOCKED] = "/blocked";
    claim_open(MOAT_SLOT_ACTIVE);
    for (int vid = VID_OPEN; vid <= VID_BLOCKED; vid++) {
        hook_connected(vid);
        hook_started(vid);
    }
}

static unsigned in_use(void)
{
    return rte_mempool_in_use_count(pool);
}

static uint16_t dequeue(int vid, struct rte_mbuf **out)
{
    return hook_dequeue(vid, 1, pool, out, 64);
}

START_TEST(refused_ones_are_freed_and_the_rest_keep_their_order)
{
    struct rte_mbuf *out[64], *good[64];
    uint16_t n_good = 0;

    for (n_from_vm = 0; n_from_vm < 64; n_from_vm++) {
        from_vm[n_from_vm] = packet(n_from_vm % 3 ? 53 : 54, false);
        if (n_from_vm % 3)
            good[n_good++] = from_vm[n_from_vm];
    }
    ck_assert_uint_eq(dequeue(VID_OPEN, out), n_good);
    ck_assert_mem_eq(out, good, n_good * sizeof *out);
    ck_assert_uint_eq(in_use(), n_good);
    rte_pktmbuf_free_bulk(out, n_good);
}
END_TEST

START_TEST(ports_that_are_not_open)
{
    static const int vids[] = {VID_BLOCKED, VID_UNKNOWN, -1, MOAT_MAX_VIDS, INT32_MAX};
    struct rte_mbuf *out[64], *one;

    for (unsigned i = 0; i < 5; i++) {
        from_vm[0] = packet(53, false);
        n_from_vm = 1;
        ck_assert_uint_eq(dequeue(vids[i], out), 0);
        ck_assert_uint_eq(in_use(), 0);
        one = packet(53, true);
        room = 64;
        ck_assert_uint_eq(hook_enqueue(vids[i], 0, &one, 1), 1); /* dealt with, not sent */
        ck_assert_uint_eq(n_sends, 0);
        rte_pktmbuf_free(one);
    }
}
END_TEST

START_TEST(a_vid_changes_hands)
{
    struct rte_mbuf *out[64];

    hook_stopped(VID_OPEN);
    hook_disconnected(VID_OPEN);
    names[VID_OPEN] = "/blocked";
    hook_connected(VID_OPEN);
    from_vm[0] = packet(53, false);
    n_from_vm = 1;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 0);

    names[VID_OPEN] = "/open"; /* plugged again without a word: blocked until claimed */
    hook_connected(VID_OPEN);
    ck_assert_int_eq(hook_port_register("/open"), 0);
    hook_connected(VID_OPEN);
    hook_started(VID_OPEN);
    from_vm[0] = packet(53, false);
    n_from_vm = 1;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 0);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

START_TEST(held_packets_stay_in_the_ring)
{
    struct rte_mbuf *out[64];
    struct moat_ctl_state arriving = {.vnic = "v", .state = MOAT_SLOT_ARRIVING};
    char err[256];

    ck_assert_int_eq(moat_slot_set_state(engine, &arriving, err, sizeof err), 0);
    n_polls = 0;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 0);
    ck_assert_uint_eq(n_polls, 0);
}
END_TEST

START_TEST(segments_are_gathered)
{
    struct rte_mbuf *out[64];

    for (uint16_t size = 1; size <= FRAME; size += 7) {
        from_vm[0] = cut(packet(53, false), size);
        from_vm[1] = cut(packet(54, false), size);
        n_from_vm = 2;
        ck_assert_uint_eq(dequeue(VID_OPEN, out), 1);
        ck_assert_ptr_eq(out[0], from_vm[0]);
        rte_pktmbuf_free(out[0]);
        ck_assert_uint_eq(in_use(), 0);
    }
}
END_TEST

/* A ring that takes two at a time, under the switch's loop. */
START_TEST(what_the_ring_does_not_take_comes_again)
{
    struct rte_mbuf *pkts[40], **p = pkts;
    uint16_t left = 40, done, good = 0;
    uint64_t counters[MOAT_N_COUNTERS];
    unsigned calls = 0;

    for (unsigned i = 0; i < 40; i++) {
        pkts[i] = packet(i % 2 ? 53 : 54, true);
        good += i % 2;
    }
    do {
        room = 2;
        done = hook_enqueue(VID_OPEN, 0, p, left);
        ck_assert_uint_gt(done, 0);
        left -= done;
        p += done;
        calls++;
    } while (left);
    ck_assert_uint_eq(n_taken, good);
    for (unsigned i = 0; i < good; i++)
        ck_assert_ptr_eq(taken[i], pkts[2 * i + 1]);
    ck_assert_uint_eq(calls, 10);
    moat_engine_counters(engine, 0, counters);
    ck_assert_uint_eq(counters[MOAT_C_TO_VM_PKTS], good);
    ck_assert_uint_eq(counters[MOAT_C_DROP(MOAT_TO_VM, MOAT_R_DEFAULT)], 40 - good);
    rte_pktmbuf_free_bulk(pkts, 40); /* the caller's, all of them */
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

/* --- guests with offloads and queues --- */

static uint64_t counter(unsigned which)
{
    uint64_t counters[MOAT_N_COUNTERS];

    moat_engine_counters(engine, 0, counters);
    return counters[which];
}

/* A large segment as the vhost library hands it over: a checksum and the cutting are left to
 * whoever sends it on. */
#define TSO_FLAGS                                                                                  \
    (RTE_MBUF_F_TX_TCP_SEG | RTE_MBUF_F_TX_TCP_CKSUM | RTE_MBUF_F_TX_IPV4 | RTE_MBUF_F_TX_IP_CKSUM)

static void leave_to_others(struct rte_mbuf *m)
{
    m->ol_flags |= TSO_FLAGS;
    m->l2_len = 14;
    m->l3_len = 20;
    m->l4_len = 8;
    m->tso_segsz = 1448;
}

static void check_left_to_others(const struct rte_mbuf *m)
{
    ck_assert_uint_eq(m->ol_flags, TSO_FLAGS);
    ck_assert_uint_eq(m->l2_len, 14);
    ck_assert_uint_eq(m->l3_len, 20);
    ck_assert_uint_eq(m->l4_len, 8);
    ck_assert_uint_eq(m->tso_segsz, 1448);
}

START_TEST(offloads_are_not_touched)
{
    struct rte_mbuf *out[64], *two[2];

    from_vm[0] = packet(53, false);
    from_vm[1] = packet(54, false);
    leave_to_others(from_vm[0]);
    leave_to_others(from_vm[1]);
    n_from_vm = 2;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 1);
    check_left_to_others(out[0]);
    rte_pktmbuf_free(out[0]);

    two[0] = packet(53, true);
    two[1] = packet(53, true);
    leave_to_others(two[0]);
    leave_to_others(two[1]);
    room = 1;
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, two, 2), 1);
    ck_assert_uint_eq(got.ol_flags, TSO_FLAGS);
    room = 1;
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, two + 1, 1), 1);
    ck_assert_uint_eq(got.ol_flags, TSO_FLAGS); /* a packet that came again, too */
    check_left_to_others(two[0]);
    check_left_to_others(two[1]);
    rte_pktmbuf_free_bulk(two, 2);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

/* 10.0.0.1 -> 10.0.0.2 of any size, in as many segments as it takes. */
static struct rte_mbuf *large(uint16_t dport, uint32_t size)
{
    struct rte_mbuf *head = packet(dport, false);
    uint8_t *ip = rte_pktmbuf_mtod_offset(head, uint8_t *, 14);

    while (rte_pktmbuf_pkt_len(head) < size) {
        uint32_t n = RTE_MIN(size - rte_pktmbuf_pkt_len(head), 1900u);
        struct rte_mbuf *s = rte_pktmbuf_alloc(pool);

        ck_assert_ptr_nonnull(s);
        ck_assert_ptr_nonnull(rte_pktmbuf_append(s, (uint16_t)n));
        ck_assert_int_eq(rte_pktmbuf_chain(head, s), 0);
    }
    ip[2] = (uint8_t)((size - 14) >> 8);
    ip[3] = (uint8_t)(size - 14);
    ip[24] = (uint8_t)((size - 34) >> 8);
    ip[25] = (uint8_t)(size - 34);
    return head;
}

START_TEST(jumbo_and_beyond_any_mtu)
{
    static const uint32_t sizes[] = {1514, 9014, 65549};
    struct rte_mbuf *out[64];
    uint64_t bytes = 0;

    for (unsigned i = 0; i < 3; i++) {
        from_vm[0] = large(54, sizes[i]);
        from_vm[1] = large(53, sizes[i]);
        n_from_vm = 2;
        ck_assert_uint_eq(dequeue(VID_OPEN, out), 1);
        ck_assert_ptr_eq(out[0], from_vm[1]);
        bytes += sizes[i];
        ck_assert_uint_eq(counter(MOAT_C_FROM_VM_BYTES), bytes);
        ck_assert_uint_eq(rte_pktmbuf_pkt_len(out[0]), sizes[i]);
        rte_pktmbuf_free(out[0]);
        ck_assert_uint_eq(in_use(), 0);
    }
}
END_TEST

/* A connection's packets come and go by any of the port's queues. */
START_TEST(all_queues_are_one_vnic)
{
    struct rte_mbuf *out[64], *one;

    for (uint16_t queue = 1; queue < 16; queue += 2) {
        from_vm[0] = packet(54, false);
        from_vm[1] = packet(53, false);
        n_from_vm = 2;
        ck_assert_uint_eq(hook_dequeue(VID_OPEN, queue, pool, out, 64), 1);
        rte_pktmbuf_free(out[0]);
        for (uint16_t dport = 53; dport < 55; dport++) {
            one = packet(dport, true);
            room = 64;
            n_taken = 0;
            ck_assert_uint_eq(hook_enqueue(VID_OPEN, queue - 1, &one, 1), 1);
            ck_assert_uint_eq(n_taken, dport == 53);
            ck_assert(dport != 53 || got.queue == queue - 1);
            rte_pktmbuf_free(one);
        }
    }
    ck_assert_uint_eq(counter(MOAT_C_SESSIONS_CREATED), 2);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

/* --- what the switch does between two slots --- */

START_TEST(a_packet_is_judged_as_it_is_now)
{
    struct rte_mbuf *out[64], *copy, *answer = packet(53, true);

    from_vm[0] = packet(53, false);
    n_from_vm = 1;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 1);
    memcpy(rte_pktmbuf_mtod(out[0], void *), rte_pktmbuf_mtod(answer, void *), FRAME);
    rte_pktmbuf_free(answer);
    copy = rte_pktmbuf_copy(out[0], pool, 0, UINT32_MAX);
    ck_assert_ptr_nonnull(copy);
    rte_pktmbuf_mtod(out[0], uint8_t *)[37] = 54; /* set_field:54->udp_dst */
    room = 64;
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, out, 1), 1);
    ck_assert_uint_eq(n_taken, 0);
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, &copy, 1), 1);
    ck_assert_uint_eq(n_taken, 1);
    rte_pktmbuf_free(out[0]);
    rte_pktmbuf_free(copy);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

/* Clones share their bytes: a header in a buffer of its own, as for multicast. */
START_TEST(clones_are_judged)
{
    struct rte_mbuf *good = packet(53, true), *bad = packet(54, true), *clones[2];

    clones[0] = rte_pktmbuf_clone(bad, pool);
    clones[1] = rte_pktmbuf_clone(good, pool);
    room = 64;
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, clones, 2), 2);
    ck_assert_uint_eq(n_taken, 1);
    ck_assert_ptr_eq(taken[0], clones[1]);
    rte_pktmbuf_free_bulk(clones, 2);
    rte_pktmbuf_free(good);
    rte_pktmbuf_free(bad);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

static void *send_both(void *arg)
{
    struct rte_mbuf *two[2] = {packet(54, true), packet(53, true)};

    ck_assert_uint_eq(rte_lcore_id(), LCORE_ID_ANY);
    room = 64;
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, two, 2), 2);
    rte_pktmbuf_free_bulk(two, 2);
    return arg;
}

/* Packet-outs and the like come from the switch's own threads, some of them short-lived. */
START_TEST(threads_that_EAL_does_not_know)
{
    for (unsigned i = 1; i <= 8; i++) {
        pthread_t thread;

        ck_assert_int_eq(pthread_create(&thread, NULL, send_both, NULL), 0);
        pthread_join(thread, NULL);
        ck_assert_uint_eq(n_taken, i);
        ck_assert_uint_eq(counter(MOAT_C_DROP(MOAT_TO_VM, MOAT_R_DEFAULT)), i);
    }
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

/* --- frames beside the burst --- */

static struct moat_port *port_open(void)
{
    return engine->ports[0];
}

static unsigned own_in_use(void)
{
    return rte_mempool_in_use_count(rte_mempool_lookup("moat_inject"));
}

/* A frame whose bytes say which one it is; nothing that a rule would let pass. */
static const uint8_t *frame(uint8_t i)
{
    static uint8_t bytes[MOAT_PENDING_FRAME_MAX + 1];

    memset(bytes, i, sizeof bytes);
    return bytes;
}

static void inject(enum moat_dir dir, uint8_t i, uint32_t len)
{
    hook_inject(port_open(), dir, frame(i), len);
}

static uint64_t lost(void)
{
    return counter(MOAT_C_INJECT_LOST);
}

START_TEST(the_vm_gets_it_at_once)
{
    static const uint32_t lens[] = {1, 42, 256, MOAT_PENDING_FRAME_MAX};

    room = 64;
    for (unsigned i = 0; i < 4; i++) {
        inject(MOAT_TO_VM, (uint8_t)i, lens[i]);
        ck_assert_uint_eq(n_taken, i + 1);
        ck_assert_int_eq(got.vid, VID_OPEN);
        ck_assert_uint_eq(got.queue, 0);
        ck_assert_uint_eq(got.ol_flags, 0);
        ck_assert_uint_eq(got.len, lens[i]);
        ck_assert_mem_eq(got.data, frame((uint8_t)i), lens[i]);
    }
    ck_assert_uint_eq(lost(), 0);
    inject(MOAT_TO_VM, 0, MOAT_PENDING_FRAME_MAX + 1);
    ck_assert_uint_eq(lost(), 1);
    room = 0;
    inject(MOAT_TO_VM, 0, 60);
    ck_assert_uint_eq(lost(), 2);
    room = 64;
    hook_stopped(VID_OPEN);
    inject(MOAT_TO_VM, 0, 60);
    ck_assert_uint_eq(lost(), 3);
    ck_assert_uint_eq(n_taken, 4);
    ck_assert_uint_eq(own_in_use(), 0);
    ck_assert_uint_eq(counter(MOAT_C_TO_VM_PKTS), 0);
}
END_TEST

/* What a burst has to tell its VM leaves when the burst has ended (vhost_enqueue()). */
START_TEST(answers_leave_after_the_burst)
{
    struct rte_mbuf *out[64];

    room = 64;
    from_vm[0] = packet(REJECTED, false);
    from_vm[1] = packet(53, false);
    from_vm[2] = packet(REJECTED, false);
    n_from_vm = 3;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 1);
    ck_assert_uint_eq(n_sends, 1);
    ck_assert_uint_eq(n_taken, 2);
    ck_assert_uint_eq(got.data[14 + 9], 1); /* ICMP */
    ck_assert_uint_eq(counter(MOAT_C_ANSWERS), 2);
    ck_assert_uint_eq(lost() + own_in_use(), 0);
    /* To the far side: with the refusing VM's next burst. */
    out[1] = packet(REJECTED, true);
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, out + 1, 1), 1);
    ck_assert_uint_eq(n_taken, 2);
    rte_pktmbuf_free_bulk(out, 2);
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 1);
    ck_assert_uint_eq(rte_pktmbuf_mtod(out[0], uint8_t *)[14 + 9], 1);
    rte_pktmbuf_free(out[0]);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

/* Between two calls that belong together: the first one judged all, the second one must not
 * do so again. */
START_TEST(an_answer_between_a_burst_and_its_rest)
{
    struct rte_mbuf *pkts[4];

    for (unsigned i = 0; i < 4; i++)
        pkts[i] = packet(53, true);
    room = 2;
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, pkts, 4), 2);
    room = 1;
    inject(MOAT_TO_VM, 1, 60);
    ck_assert_uint_eq(got.len, 60);
    room = 2;
    ck_assert_uint_eq(hook_enqueue(VID_OPEN, 0, pkts + 2, 2), 2);
    ck_assert_uint_eq(counter(MOAT_C_TO_VM_PKTS), 4);
    rte_pktmbuf_free_bulk(pkts, 4);
    ck_assert_uint_eq(in_use() + own_in_use(), 0);
}
END_TEST

static void check_frame(struct rte_mbuf *m, uint8_t i, uint32_t len)
{
    ck_assert_ptr_eq(m->pool, pool); /* the switch's: it keeps data of its own behind the mbuf */
    ck_assert_uint_eq(rte_pktmbuf_pkt_len(m), len);
    ck_assert_uint_eq(rte_pktmbuf_data_len(m), len);
    ck_assert_uint_eq(m->ol_flags, 0);
    ck_assert_mem_eq(rte_pktmbuf_mtod(m, void *), frame(i), len);
}

START_TEST(the_switch_gets_it_in_front_of_the_next_burst)
{
    struct rte_mbuf *out[64];

    for (uint8_t i = 0; i < 3; i++)
        inject(MOAT_FROM_VM, i, 100u + i);
    from_vm[0] = packet(54, false);
    from_vm[1] = packet(53, false);
    n_from_vm = 2;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 4);
    for (uint8_t i = 0; i < 3; i++)
        check_frame(out[i], i, 100u + i);
    ck_assert_ptr_eq(out[3], from_vm[1]);
    ck_assert_uint_eq(counter(MOAT_C_FROM_VM_PKTS), 1); /* judged, or not */
    rte_pktmbuf_free_bulk(out, 4);
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 0);
    ck_assert_uint_eq(in_use() + own_in_use() + lost(), 0);
}
END_TEST

/* No more than was asked for; the library is not asked for 0 packets, which it does not
 * expect, and loses nothing that the VM sent. */
START_TEST(no_more_than_the_switch_has_room_for)
{
    struct rte_mbuf *out[64];

    for (uint8_t i = 0; i < 5; i++)
        inject(MOAT_FROM_VM, i, 100);
    from_vm[0] = packet(53, false);
    n_from_vm = 1;
    n_polls = 0;
    ck_assert_uint_eq(hook_dequeue(VID_OPEN, 1, pool, out, 3), 3);
    ck_assert_uint_eq(n_polls, 0);
    ck_assert_uint_eq(hook_dequeue(VID_OPEN, 3, pool, out + 3, 3), 3);
    ck_assert_uint_eq(n_polls, 1);
    for (uint8_t i = 0; i < 5; i++)
        check_frame(out[i], i, 100);
    ck_assert_ptr_eq(out[5], from_vm[0]);
    rte_pktmbuf_free_bulk(out, 6);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

START_TEST(what_finds_no_room_is_counted)
{
    enum { FIT = MOAT_PENDING_BYTES / 1002 };
    struct rte_mempool *small = rte_pktmbuf_pool_create("small", 63, 0, 0, 500, SOCKET_ID_ANY);
    struct rte_mbuf *out[64], *all[N_MBUFS];
    uint16_t n;

    for (uint8_t i = 0; i < FIT + 4; i++)
        inject(MOAT_FROM_VM, i, 1000);
    ck_assert_uint_eq(lost(), 4);
    inject(MOAT_FROM_VM, 0, MOAT_PENDING_FRAME_MAX + 1);
    ck_assert_uint_eq(lost(), 5);

    for (n = 0; (all[n] = rte_pktmbuf_alloc(pool)); n++)
        ;
    ck_assert_uint_eq(dequeue(VID_OPEN, out), 0); /* no mbuf: they wait */
    rte_pktmbuf_free_bulk(all, n);
    ck_assert_uint_eq(dequeue(VID_OPEN, out), FIT);
    check_frame(out[FIT - 1], FIT - 1, 1000);
    rte_pktmbuf_free_bulk(out, FIT);

    ck_assert_ptr_nonnull(small);
    inject(MOAT_FROM_VM, 0, 1000);
    inject(MOAT_FROM_VM, 1, 300);
    ck_assert_uint_eq(hook_dequeue(VID_OPEN, 1, small, out, 64), 1);
    ck_assert_uint_eq(rte_pktmbuf_pkt_len(out[0]), 300);
    ck_assert_uint_eq(lost(), 6);
    rte_pktmbuf_free(out[0]);
    ck_assert_uint_eq(in_use() + rte_mempool_in_use_count(small), 0);
}
END_TEST

/* What waits dies with the device, however that ends; and a VM without one gets nothing. */
START_TEST(nothing_outlives_the_device)
{
    struct rte_mbuf *out[64];

    room = 64;
    for (int how = 0; how < 4; how++) {
        inject(MOAT_FROM_VM, 0, 100);
        if (how == 0)
            hook_stopped(VID_OPEN);
        else if (how == 1)
            hook_disconnected(VID_OPEN);
        else if (how == 2)
            ck_assert_int_eq(hook_port_register("/open"), 0);
        inject(MOAT_TO_VM, 0, 60);
        ck_assert_uint_eq(n_taken, how == 3);
        if (how)
            hook_connected(VID_OPEN);
        hook_started(VID_OPEN);
        ck_assert_uint_eq(dequeue(VID_OPEN, out), 0);
        ck_assert_uint_eq(in_use(), 0);
    }
}
END_TEST

/* The old device's end is told after the new one's start. */
START_TEST(an_end_that_comes_late)
{
    names[VID_UNKNOWN] = "/open";
    hook_connected(VID_UNKNOWN);
    hook_started(VID_UNKNOWN);
    hook_stopped(VID_OPEN);
    hook_disconnected(VID_OPEN);
    room = 1;
    inject(MOAT_TO_VM, 0, 60);
    ck_assert_uint_eq(n_taken, 1);
    ck_assert_int_eq(got.vid, VID_UNKNOWN);
}
END_TEST

/* Other threads at both ends of several queues. */
static bool over;
static uint32_t n_injected, n_returned;

static void *inject_many(void *arg)
{
    for (unsigned i = 0; i < 20000; i++) {
        hook_inject(port_open(), MOAT_FROM_VM, arg, 60);
        __atomic_fetch_add(&n_injected, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void *return_many(void *queue)
{
    struct rte_mbuf *out[32];
    bool stop;

    do {
        uint16_t n;

        stop = __atomic_load_n(&over, __ATOMIC_ACQUIRE);
        while ((n = hook_dequeue(VID_OPEN, (uint16_t)(uintptr_t)queue, pool, out, 32))) {
            __atomic_fetch_add(&n_returned, n, __ATOMIC_RELAXED);
            rte_pktmbuf_free_bulk(out, n);
        }
    } while (!stop);
    return NULL;
}

START_TEST(none_is_lost_without_a_count)
{
    pthread_t in[2], out[2];
    static uint8_t bytes[60];

    for (uintptr_t i = 0; i < 2; i++) {
        ck_assert_int_eq(pthread_create(&in[i], NULL, inject_many, bytes), 0);
        ck_assert_int_eq(pthread_create(&out[i], NULL, return_many, (void *)(2 * i + 1)), 0);
    }
    for (unsigned i = 0; i < 2; i++)
        pthread_join(in[i], NULL);
    __atomic_store_n(&over, true, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < 2; i++)
        pthread_join(out[i], NULL);
    return_many((void *)1);
    ck_assert_uint_gt(n_returned, 0);
    ck_assert_uint_eq(n_returned + lost(), n_injected);
    ck_assert_uint_eq(in_use(), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("hook");
    TCase *t = tcase_create("bursts");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, NULL); /* a process each: EAL starts once */
    tcase_add_test(t, refused_ones_are_freed_and_the_rest_keep_their_order);
    tcase_add_test(t, ports_that_are_not_open);
    tcase_add_test(t, a_vid_changes_hands);
    tcase_add_test(t, held_packets_stay_in_the_ring);
    tcase_add_test(t, segments_are_gathered);
    tcase_add_test(t, what_the_ring_does_not_take_comes_again);
    tcase_add_test(t, offloads_are_not_touched);
    tcase_add_test(t, jumbo_and_beyond_any_mtu);
    tcase_add_test(t, all_queues_are_one_vnic);
    tcase_add_test(t, a_packet_is_judged_as_it_is_now);
    tcase_add_test(t, clones_are_judged);
    tcase_add_test(t, threads_that_EAL_does_not_know);
    tcase_add_test(t, the_vm_gets_it_at_once);
    tcase_add_test(t, answers_leave_after_the_burst);
    tcase_add_test(t, an_answer_between_a_burst_and_its_rest);
    tcase_add_test(t, the_switch_gets_it_in_front_of_the_next_burst);
    tcase_add_test(t, no_more_than_the_switch_has_room_for);
    tcase_add_test(t, what_finds_no_room_is_counted);
    tcase_add_test(t, nothing_outlives_the_device);
    tcase_add_test(t, an_end_that_comes_late);
    tcase_add_test(t, none_is_lost_without_a_count);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
