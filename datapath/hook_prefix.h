/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_HOOK_PREFIX_H
#define MOAT_DP_HOOK_PREFIX_H 1

/* Sending a filtered burst to a VM: which prefix of the caller's array is dealt with.
 *
 * The switch gives an array of packets that it goes on to own, wants to know how many
 * from the front are done with, and calls again with the rest as long as that is not
 * zero.  Refused packets are done with as they are judged, admitted ones when the ring
 * has taken them:
 *
 *   array     0  1  2  3  4  5  6      + admitted, - refused; the ring takes 2
 *   verdict   -  +  -  +  -  +  -
 *   sent         *     *     ^ first one that the ring did not take
 *   consumed  = = = = = = =  5: packet 5 comes again as the first of the next call
 *
 * Packets that come again must be neither judged nor counted twice.  Two things must
 * agree before an earlier verdict is believed: a note of the calling thread (which ring,
 * which place of the caller's array, how many were left), and a mark on every packet
 * concerned, which is gone when a packet's buffer has been allocated anew.  The note
 * alone is not enough: the switch's next batch lies at the same address.
 *
 * Pure but for the functions that are passed in: tests run it against a ring of theirs.
 * The usual case is one inlined body; the io is a constant where it is used. */

#include <stdbool.h>
#include <stdint.h>

struct rte_mbuf;

#define HOOK_BURST 32

/* What a thread remembers of a burst that the ring did not take whole. */
struct hook_note {
    struct rte_mbuf **at; /* where the rest starts in the caller's array */
    int vid;
    uint16_t queue;
    uint16_t left;   /* packets from there to the end of the array; 0: no note */
    uint16_t judged; /* so many of them were judged */
    uint32_t pass;   /* bit i: at[i] is admitted */
};

struct hook_io {
    /* Verdicts on n <= HOOK_BURST packets; bit i: admitted. */
    uint32_t (*judge)(void *ctx, struct rte_mbuf **, unsigned n);
    /* How many of n packets the ring took, from the front. */
    unsigned (*send)(void *ctx, struct rte_mbuf **, unsigned n);
    void (*mark)(void *ctx, struct rte_mbuf *);
    bool (*unmark)(void *ctx, struct rte_mbuf *); /* was it marked? */
};

static inline uint32_t hook_mask(unsigned n)
{
    return n >= 32 ? UINT32_MAX : (1u << n) - 1;
}

/* How many of the n <= 32 packets are dealt with once the ring has taken `sent` of those
 * whose bit is set. */
static inline unsigned hook_prefix(uint32_t pass, unsigned n, unsigned sent)
{
    pass &= hook_mask(n);
    while (sent-- && pass)
        pass &= pass - 1;
    return pass ? (unsigned)__builtin_ctz(pass) : n;
}

/* The rare cases, out of line.  Recall: are the first note->judged packets those that the
 * note is about?  It and their marks are used up.  Remember: m of the left packets at pkts
 * were judged, `pass` says how. */
bool hook_recall(struct hook_note *, const struct hook_io *, void *ctx, int vid, uint16_t queue,
                 struct rte_mbuf **pkts, uint16_t n);
void hook_remember(struct hook_note *, const struct hook_io *, void *ctx, int vid, uint16_t queue,
                   struct rte_mbuf **pkts, unsigned left, unsigned m, uint32_t pass);

static inline unsigned hook_send(const struct hook_io *io, void *ctx, struct rte_mbuf **pkts,
                                 unsigned n, uint32_t pass)
{
    struct rte_mbuf *out[HOOK_BURST];
    unsigned n_out = 0;

    if (pass == hook_mask(n))
        return io->send(ctx, pkts, n);
    for (; pass; pass &= pass - 1)
        out[n_out++] = pkts[__builtin_ctz(pass)];
    return n_out ? io->send(ctx, out, n_out) : 0;
}

static inline __attribute__((always_inline)) uint16_t
hook_enqueue_burst(struct hook_note *note, const struct hook_io *io, void *ctx, int vid,
                   uint16_t queue, struct rte_mbuf **pkts, uint16_t n)
{
    bool known =
        __builtin_expect(note->left != 0, 0) && hook_recall(note, io, ctx, vid, queue, pkts, n);
    uint16_t done = 0;

    while (done < n) {
        unsigned m = known ? note->judged : n - done < HOOK_BURST ? n - done : HOOK_BURST;
        uint32_t pass = known ? note->pass : io->judge(ctx, pkts + done, m) & hook_mask(m);
        unsigned sent = hook_send(io, ctx, pkts + done, m, pass);
        unsigned k = hook_prefix(pass, m, sent);

        known = false;
        done += (uint16_t)k;
        if (__builtin_expect(k < m, 0)) {
            hook_remember(note, io, ctx, vid, queue, pkts + done, n - done, m - k, pass >> k);
            break;
        }
    }
    return done;
}

#endif /* datapath/hook_prefix.h */
