/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_DP_STATE_TCP_H
#define MOAT_DP_STATE_TCP_H 1

/* TCP state tracking of one session, as seen in the middle of the path
 * (G. van Rooij, "Real Stateful TCP Packet Filtering in IP Filter", 2001;
 * RFC 9293; RFC 7323 window scaling; RFC 5961 challenge ACKs; RFC 5927 ICMP errors;
 * RFC 6191 port reuse; RFC 7413 data in SYNs).  Pure.
 *
 * side[d] belongs to the end that sends in direction d (enum moat_dir).
 * Threads: a packet in direction d writes side[d].{seq_lo,max_win,wscale} and
 * side[!d].seq_hi; `state` of both by compare-and-swap upwards.  Thus the two
 * directions may run on two threads.  All accesses are relaxed atomics. */

#include <stdbool.h>
#include <stdint.h>

#include "moat/flow.h"
#include "moat/session.h"
#include "moat/settings.h"

#include "parse.h"

/* State of one end; only ever rises while a connection lives. */
enum moat_tcp_state {
    MOAT_TCPS_NONE = 0,        /* nothing sent yet */
    MOAT_TCPS_SYN_SENT = 1,    /* SYN seen from it */
    MOAT_TCPS_ESTABLISHED = 2, /* its SYN was acknowledged */
    MOAT_TCPS_CLOSING = 3,     /* FIN seen from it */
    MOAT_TCPS_FIN_ACKED = 4,   /* its FIN was acknowledged */
    MOAT_TCPS_RESET = 5,       /* either end reset the connection */
    MOAT_N_TCP_STATES
};

/* First packet of a session.  Fills both sides.  MOAT_R_NONE, or why no session
 * may start with this segment: strict: only a pure SYN opens (MOAT_R_TCP_NO_SESSION
 * otherwise); loose: any segment with an ACK but RST and SYN|ACK; windows are then learnt
 * from the first packets of each side. */
enum moat_reason moat_tcp_open(struct moat_ses_side side[2], unsigned dir,
                               const struct moat_tcp_seg *, bool loose);

/* What moat_tcp_track() says of a segment that passes and is not believed: its receiver
 * knows better.  No state or window moves; the caller shall not take it for a sign of
 * life (no time stamp, no counts of the session), only count it (MOAT_C_UNBELIEVED).
 *   - a RST within the window that is not exact: it will be challenged (RFC 5961, 3.2)
 *   - a SYN of the end that opened the session, while that lives: the same (section 4.2).
 *     So a client that lost its memory may use a port again: SYN, challenge, exact RST,
 *     SYN.  The other end's is refused: it may open nothing
 *   - a SYN|ACK of the end that was called, within the window, that is not the first one
 *     again: the same
 *   - in answer to a first SYN, an ACK of an older connection that the answering end
 *     still has (RFC 9293, 3.5.1), and the RST that this ACK gets
 *   - what comes within the window after a reset: the sender has not heard of it and will
 *     get another one */
#define MOAT_TCP_UNBELIEVED ((enum moat_reason)MOAT_N_REASONS)

/* A further packet.  MOAT_R_NONE: passes, sides updated.  MOAT_TCP_UNBELIEVED: passes, see
 * there.  MOAT_R_TCP_WINDOW or MOAT_R_TCP_STATE: refused, nothing changed; but what the VM
 * itself answers to a SYN that passed unbelieved may say that the session is over: it is,
 * the answer is refused and the next SYN opens.  `lenient`
 * (imported sessions until one packet was seen each way): a segment within a window's
 * distance of what is known is believed and the bounds are moved to it. */
enum moat_reason moat_tcp_track(struct moat_ses_side side[2], unsigned dir,
                                const struct moat_tcp_seg *, bool lenient);

/* The same for nearly all segments, with few branches: true if moat_tcp_track(), not lenient, would
 * let it pass and has nothing to do but move the edges, which are moved.  False: nothing is known,
 * nothing has changed.  For segments with ACK and without SYN, FIN and RST; end: sequence number
 * behind its data.
 *
 * That is, both ends are established and their windows are known; it begins or goes on at the
 * end of what was sent, ends within what the peer allows, and acknowledges no less than what was
 * sent a small window ago.  The bounds make sure that no sum that moat_tcp_track() makes wraps. */
#define MOAT_TCP_SLACK 66000u /* an unscaled window and a segment: what may be old or ahead */

static inline __attribute__((always_inline)) bool moat_tcp_straight(struct moat_ses_side side[2],
                                                                    const unsigned dir,
                                                                    uint32_t end, uint32_t ack,
                                                                    uint16_t win)
{
    struct moat_ses_side *src = &side[dir], *dst = &side[!dir];
    /* max_win | wscale << 16 | state << 24 */
    const uint32_t established = (uint32_t)MOAT_TCPS_ESTABLISHED << 24, guessed = 0x60u << 16;
    uint32_t mine = __atomic_load_n((uint32_t *)(void *)&src->max_win, __ATOMIC_RELAXED);
    uint32_t peers = __atomic_load_n((uint32_t *)(void *)&dst->max_win, __ATOMIC_RELAXED);
    uint32_t scaled = (uint32_t)((int32_t)((mine & peers) << 8) >> 31);
    uint32_t lo = __atomic_load_n(&src->seq_lo, __ATOMIC_RELAXED);
    uint32_t hi = __atomic_load_n(&dst->seq_hi, __ATOMIC_RELAXED), edge;

    if (((mine ^ established) | (peers ^ established)) & (0xffu << 24 | guessed) ||
        end - lo >= 1u << 30 ||
        (int32_t)(__atomic_load_n(&src->seq_hi, __ATOMIC_RELAXED) - end) < 0 ||
        __atomic_load_n(&dst->seq_lo, __ATOMIC_RELAXED) - ack > MOAT_TCP_SLACK ||
        win > (uint16_t)mine)
        return false;
    edge = ((uint32_t)win << (mine >> 16 & 15 & scaled)) + ack + !win;
    if (end != lo)
        __atomic_store_n(&src->seq_lo, end, __ATOMIC_RELAXED);
    if ((int32_t)(hi - edge) < 0)
        __atomic_store_n(&dst->seq_hi, edge, __ATOMIC_RELAXED);
    return true;
}

/* True if this segment of direction dir starts a new connection on the tuple of a session
 * that is over: the caller forgets the old one and opens.  A SYN when
 *   - both FINs were acknowledged, or either end has reset the connection;
 *   - the VM itself, which had opened the session, calls again with another number;
 *   - both have sent a FIN and the receiver's was acknowledged, so it may be in TIME-WAIT
 *     though the acknowledgement of the sender's was not seen, and the sequence number
 *     is above the old ones (RFC 9293, 3.6.1 and 3.10.7.4; RFC 6191). */
bool moat_tcp_syn_reopens(const struct moat_ses_side side[2], unsigned dir,
                          const struct moat_tcp_seg *);

static inline bool moat_tcp_reopens(const struct moat_ses_side side[2], unsigned dir,
                                    const struct moat_tcp_seg *s)
{
    return __builtin_expect((s->flags & (MOAT_TCP_SYN | MOAT_TCP_ACK)) == MOAT_TCP_SYN, 0) &&
           moat_tcp_syn_reopens(side, dir, s);
}

/* True while the handshake is not over: what SYN floods make. */
bool moat_tcp_half_open(const struct moat_ses_side side[2]);

/* True if a segment with this sequence number may have been sent in direction dir and may
 * be on its way still, or was a window ago: whether an ICMP error that quotes it is to
 * be believed (RFC 5927, section 4.1). */
bool moat_tcp_was_sent(const struct moat_ses_side side[2], unsigned dir, uint32_t seq);

enum moat_timer moat_tcp_timer(const struct moat_ses_side side[2]);

/* True if an imported record's states and windows are possible. */
bool moat_tcp_valid(const struct moat_ses_side side[2]);

#endif /* datapath/state_tcp.h */
