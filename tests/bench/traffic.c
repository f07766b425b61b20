/* SPDX-License-Identifier: Apache-2.0 */

/* Both guests of the l2 and latency rows: VM "sink" is port 0, VM "gen" port 1, each a
 * virtio_user device on a vhost-user port of the switch; one thread polls them in turn.
 *
 *   bench_traffic [EAL OPTION...] --vdev=net_virtio_user0,... --vdev=net_virtio_user1,...
 *
 * Takes commands, a line each, from standard input and answers each with one line:
 *
 *   flows N random|order   gen sends 60-byte UDP packets of N flows for ever, sink swallows them
 *   fill N                 each of N flows once, at a modest pace; answers when they are sent
 *   stop                   nobody sends
 *   count                  "SENT RECEIVED" of the two above, since the start
 *   most LEN MS            round trips per second with many under way (LEN: of the frame)
 *   ask LEN RATE MS        round trips at so many a second:
 *                          "N LOST P50 P99 P999 MAX KEPT STANDING", times in ns
 *   knee LEN LOW HIGH MS STEPS
 *                          the highest rate that is borne, by halving: "LOW HIGH" at the end
 *
 * A round trip: gen sends a request of one of 256 flows with the TSC in it, sink turns it round,
 * gen reads the TSC again.  Both guests are this thread, so there is one clock and no wake-up.
 *
 * Requests leave one by one, at even distances.  That costs everybody more than the bursts of `most`: half of what
 * `most` says can be more than this traffic gets through, and then requests wait in a queue that
 * never ends.  So a window says how much of the rate could be kept (KEPT, in per cent of the requests
 * that were due), and in how many per cent of its milliseconds the queue stood (STANDING: there
 * were never fewer under way than a burst).  A rate is borne if it is kept and the queue
 * does not stand. */

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_cycles.h>
#include <rte_eal.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "frames.h"

#define SINK 0
#define GEN 1
#define RING 1024
#define BURST 32
#define MBUFS 32767
#define LINE 128
#define POLL_EVERY 4096 /* turns of the loop between two looks for a command */
#define ASK_FLOWS 256
#define MOST_UNDER_WAY 128
#define FILL_PACE_NS 1000 /* a new session costs the peer more than a packet */
#define SETTLE_MS 20
#define QUEUE BURST          /* so many under way all the time: they wait for each other */
#define KEPT_LEAST 0.98      /* of the requests that were due */
#define STANDING_MOST 0.1    /* of the milliseconds */
#define BUCKET_CYCLES 32
#define BUCKETS (1u << 19)
#define STAMP 48 /* where a request has its TSC */

static const uint8_t mac[2][6] = {{2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 1}};
static struct rte_mempool *pool;
static uint64_t seed = 88172645463325252u;

/* Streams. */
static uint32_t n_flows, next_flow;
static bool sending, in_random;
static uint64_t sent, received;

static void die(const char *what)
{
    fprintf(stderr, "bench_traffic: %s\n", what);
    exit(1);
}

/* --- ports and frames --- */

static void start_port(uint16_t port)
{
    static const struct rte_eth_conf conf = {0};

    if (rte_eth_dev_configure(port, 1, 1, &conf) ||
        rte_eth_rx_queue_setup(port, 0, RING, rte_socket_id(), NULL, pool) ||
        rte_eth_tx_queue_setup(port, 0, RING, rte_socket_id(), NULL) || rte_eth_dev_start(port))
        die("a port does not start");
}

static uint8_t head[FRAME_ROOM];

/* A request of flow c: only ports, and lengths, differ. */
static void make_head(uint16_t len)
{
    struct frame_flow w = {0x0afe0001u, 0x0afd0001u, 0, 0, 0};
    uint8_t *ip = head + 14;

    frame_of(head, &w, 0, 0);
    memcpy(head, mac[SINK], 6);
    memcpy(head + 6, mac[GEN], 6);
    put16(ip + 2, len - 14u);
    put16(ip + 10, 0);
    put16(ip + 10, fold(sum16(0, ip, 20)));
    put16(head + 38, len - 34u);
}

static void fill_frame(struct rte_mbuf *m, uint32_t c, uint16_t len)
{
    uint8_t *f = rte_pktmbuf_mtod(m, uint8_t *);

    memcpy(f, head, FRAME);
    put16(f + 34, 1024 + (c & 0x7fff));
    put16(f + 36, 1024 + (c >> 15));
    m->data_len = len;
    m->pkt_len = len;
}

static void turn_round(struct rte_mbuf *m)
{
    uint8_t *f = rte_pktmbuf_mtod(m, uint8_t *), was[8];

    memcpy(f, mac[GEN], 6);
    memcpy(f + 6, mac[SINK], 6);
    memcpy(was, f + 26, 4);
    memcpy(f + 26, f + 30, 4);
    memcpy(f + 30, was, 4);
    memcpy(was, f + 34, 2);
    memcpy(f + 34, f + 36, 2);
    memcpy(f + 36, was, 2);
}

/* Sends all or frees the rest; how many were sent. */
static unsigned send_all(uint16_t port, struct rte_mbuf **pkts, unsigned n)
{
    unsigned k = rte_eth_tx_burst(port, 0, pkts, (uint16_t)n);

    if (k < n)
        rte_pktmbuf_free_bulk(pkts + k, n - k);
    return k;
}

/* --- streams --- */

static unsigned swallow(uint16_t port)
{
    struct rte_mbuf *pkts[2 * BURST];
    unsigned n = rte_eth_rx_burst(port, 0, pkts, 2 * BURST);

    rte_pktmbuf_free_bulk(pkts, n);
    return n;
}

static uint32_t draw_flow(void)
{
    uint32_t c;

    if (in_random)
        return next_random(&seed) % n_flows;
    c = next_flow;
    next_flow = c + 1 == n_flows ? 0 : c + 1;
    return c;
}

static void send_stream(unsigned n)
{
    struct rte_mbuf *pkts[BURST];

    if (rte_pktmbuf_alloc_bulk(pool, pkts, n))
        return;
    for (unsigned i = 0; i < n; i++)
        fill_frame(pkts[i], draw_flow(), FRAME);
    sent += send_all(GEN, pkts, n);
}

static void stream_turn(void)
{
    received += swallow(SINK);
    swallow(GEN);
    if (sending)
        send_stream(BURST);
}

static void wait_ms(unsigned ms)
{
    uint64_t end = rte_rdtsc() + ms * rte_get_tsc_hz() / 1000;

    while (rte_rdtsc() < end)
        stream_turn();
}

static void fill(uint32_t n)
{
    uint64_t pace = FILL_PACE_NS * rte_get_tsc_hz() / 1000000000 * 8, next = rte_rdtsc();

    make_head(FRAME);
    sending = in_random = false;
    next_flow = 0;
    n_flows = n;
    for (uint64_t end = sent + n; sent < end;) {
        uint64_t now = rte_rdtsc(), left = end - sent;
        uint64_t before = sent;
        uint32_t from = next_flow;

        received += swallow(SINK);
        if (now < next)
            continue;
        next = now + pace;
        send_stream(left < 8 ? (unsigned)left : 8);
        if (sent - before < 8) /* what the ring did not take is sent again */
            next_flow = (uint32_t)((from + (sent - before)) % n);
    }
    wait_ms(SETTLE_MS);
    puts("filled");
}

static void flows(uint32_t n, bool random)
{
    make_head(FRAME);
    n_flows = n;
    next_flow = 0;
    in_random = random;
    sending = true;
    puts("sending");
}

/* --- round trips --- */

static struct {
    uint16_t len;
    uint64_t asked, answered, most;
    uint32_t bucket[BUCKETS];
} trips;

static void ask(unsigned n)
{
    struct rte_mbuf *pkts[BURST];
    uint64_t now;

    if (rte_pktmbuf_alloc_bulk(pool, pkts, n))
        return;
    now = rte_rdtsc();
    for (unsigned i = 0; i < n; i++) {
        fill_frame(pkts[i], (uint32_t)(trips.asked + i) % ASK_FLOWS, trips.len);
        memcpy(rte_pktmbuf_mtod_offset(pkts[i], uint8_t *, STAMP), &now, sizeof now);
    }
    trips.asked += send_all(GEN, pkts, n);
}

static void answer(void)
{
    struct rte_mbuf *pkts[BURST];
    unsigned n = rte_eth_rx_burst(SINK, 0, pkts, BURST);

    for (unsigned i = 0; i < n; i++)
        turn_round(pkts[i]);
    if (n)
        send_all(SINK, pkts, n);
}

static void hear(void)
{
    struct rte_mbuf *pkts[BURST];
    unsigned n = rte_eth_rx_burst(GEN, 0, pkts, BURST);
    uint64_t now = rte_rdtsc();

    for (unsigned i = 0; i < n; i++) {
        uint64_t then, t;

        if (rte_pktmbuf_data_len(pkts[i]) < STAMP + sizeof then)
            continue;
        memcpy(&then, rte_pktmbuf_mtod_offset(pkts[i], uint8_t *, STAMP), sizeof then);
        t = now - then;
        if (t > trips.most)
            trips.most = t;
        t /= BUCKET_CYCLES;
        trips.bucket[t < BUCKETS ? t : BUCKETS - 1]++;
        trips.answered++;
    }
    rte_pktmbuf_free_bulk(pkts, n);
}

static void forget_trips(uint16_t len)
{
    sending = false;
    wait_ms(SETTLE_MS);
    memset(&trips, 0, sizeof trips);
    trips.len = len;
    make_head(len);
}

static double to_ns(uint64_t cycles)
{
    return (double)cycles * 1e9 / (double)rte_get_tsc_hz();
}

static double share_ns(double share)
{
    uint64_t want = (uint64_t)((double)trips.answered * share), have = 0;

    for (uint32_t i = 0; i < BUCKETS; i++) {
        have += trips.bucket[i];
        if (have > want)
            return to_ns((uint64_t)i * BUCKET_CYCLES + BUCKET_CYCLES / 2);
    }
    return to_ns(trips.most);
}

/* Answers that are still under way get their time. */
static void late_answers(void)
{
    uint64_t end = rte_rdtsc() + SETTLE_MS * rte_get_tsc_hz() / 1000;

    while (trips.answered < trips.asked && rte_rdtsc() < end) {
        answer();
        hear();
    }
}

static void most(uint16_t len, unsigned ms)
{
    uint64_t hz = rte_get_tsc_hz(), start, n, t;

    forget_trips(len);
    start = rte_rdtsc();
    do {
        answer();
        hear();
        if (trips.asked - trips.answered <= MOST_UNDER_WAY - BURST)
            ask(BURST);
        t = rte_rdtsc() - start;
    } while (t < ms * hz / 1000);
    n = trips.answered;
    late_answers();
    printf("%.0f\n", (double)n * (double)hz / (double)t);
}

/* How a window went. */
struct load {
    uint64_t due, slices, standing;
};

static bool borne(const struct load *l)
{
    return (double)trips.asked >= KEPT_LEAST * (double)l->due && trips.answered == trips.asked &&
           (double)l->standing <= STANDING_MOST * (double)l->slices;
}

static struct load ask_at(uint16_t len, double rate, unsigned ms)
{
    uint64_t hz = rte_get_tsc_hz(), slice = hz / 1000, slice_end = slice, start, now;
    uint64_t fewest = UINT64_MAX;
    double gap = (double)hz / rate, next = 0;
    struct load l = {0};

    forget_trips(len);
    start = rte_rdtsc();
    do {
        unsigned due = 0;

        answer();
        hear();
        if (trips.asked - trips.answered < fewest)
            fewest = trips.asked - trips.answered;
        now = rte_rdtsc() - start;
        while (next <= (double)now && due < BURST) {
            next += gap;
            due++;
        }
        if (next < (double)now)
            next = (double)now; /* this thread was away: no burst to make up for it */
        if (due)
            ask(due);
        if (now >= slice_end) {
            l.slices++;
            l.standing += fewest >= QUEUE;
            fewest = UINT64_MAX;
            slice_end = now + slice;
        }
    } while (now < ms * hz / 1000);
    l.due = (uint64_t)((double)now / gap);
    late_answers();
    return l;
}

static void tell_trips(const struct load *l)
{
    printf("%" PRIu64 " %" PRIu64 " %.0f %.0f %.0f %.0f %.1f %.1f\n", trips.answered,
           trips.asked - trips.answered, share_ns(.5), share_ns(.99), share_ns(.999),
           to_ns(trips.most), 100 * (double)trips.asked / (double)l->due,
           100 * (double)l->standing / (double)l->slices);
}

/* The machine may have been away in one window: a second one decides. */
static bool bears(uint16_t len, double rate, unsigned ms)
{
    for (unsigned i = 0; i < 2; i++) {
        struct load l = ask_at(len, rate, ms);

        if (borne(&l))
            return true;
    }
    return false;
}

static void knee(uint16_t len, double low, double high, unsigned ms, unsigned steps)
{
    while (steps--) {
        double rate = (low + high) / 2;

        *(bears(len, rate, ms) ? &low : &high) = rate;
    }
    printf("%.0f %.0f\n", low, high);
}

/* --- commands --- */

static void obey(const char *line)
{
    unsigned n, len, ms;
    char order[16];
    double rate, high;

    if (sscanf(line, "flows %u %15s", &n, order) == 2 && n && n <= FRAMES_MAX_CONNS)
        flows(n, !strcmp(order, "random"));
    else if (sscanf(line, "fill %u", &n) == 1 && n && n <= FRAMES_MAX_CONNS)
        fill(n);
    else if (!strcmp(line, "stop"))
        sending = false, wait_ms(SETTLE_MS), puts("stopped");
    else if (!strcmp(line, "count"))
        printf("%" PRIu64 " %" PRIu64 "\n", sent, received);
    else if (sscanf(line, "most %u %u", &len, &ms) == 2 && len >= FRAME && len <= 1514)
        most((uint16_t)len, ms);
    else if (sscanf(line, "ask %u %lf %u", &len, &rate, &ms) == 3 && len >= FRAME && len <= 1514 &&
             rate >= 1 && ms) {
        struct load l = ask_at((uint16_t)len, rate, ms);

        tell_trips(&l);
    } else if (sscanf(line, "knee %u %lf %lf %u %u", &len, &rate, &high, &ms, &n) == 5 &&
               len >= FRAME && len <= 1514 && rate >= 1 && high >= rate && ms)
        knee((uint16_t)len, rate, high, ms, n);
    else
        printf("what is %s?\n", line);
    fflush(stdout);
}

/* Reads what is there; false at the end of the input. */
static bool look_for_commands(void)
{
    static char buf[LINE];
    static size_t have;
    struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
    ssize_t got;
    char *end;

    if (poll(&p, 1, 0) <= 0)
        return true;
    got = read(STDIN_FILENO, buf + have, sizeof buf - 1 - have);
    if (got <= 0)
        return got < 0 && errno == EINTR;
    have += (size_t)got;
    buf[have] = 0;
    while ((end = strchr(buf, '\n'))) {
        *end = 0;
        obey(buf);
        have -= (size_t)(end + 1 - buf);
        memmove(buf, end + 1, have + 1);
    }
    return have < sizeof buf - 1;
}

int main(int argc, char **argv)
{
    if (rte_eal_init(argc, argv) < 0)
        die("EAL does not start");
    if (rte_eth_dev_count_avail() != 2)
        die("two ports are wanted");
    pool = rte_pktmbuf_pool_create("bench", MBUFS, 512, 0, RTE_MBUF_DEFAULT_BUF_SIZE,
                                   (int)rte_socket_id());
    if (!pool)
        die("no mbufs");
    start_port(SINK);
    start_port(GEN);
    puts("ready");
    fflush(stdout);
    while (look_for_commands())
        for (unsigned i = 0; i < POLL_EVERY; i++)
            stream_turn();
    return 0;
}
