/* SPDX-License-Identifier: Apache-2.0 */

/* What is known of each end, learnt from what passes:
 *
 *   seq_lo    the end of what it has sent (sequence number behind the last octet)
 *   seq_hi    how far its peer lets it send (largest acknowledgement + window)
 *   max_win   the largest window that it has offered
 *
 * A segment fits if it ends within what the peer allows, no more than one of the peer's
 * windows before the end of what was sent already (retransmissions), and acknowledges nothing
 * that was not sent and nothing older than a window.  The packets of both ends pass here
 * before they reach the other end, so an honest acknowledgement is never ahead.
 *
 *            SYN              its SYN acked        FIN         its FIN acked
 *   NONE ---------> SYN_SENT -------> ESTABLISHED -------> CLOSING -------> FIN_ACKED
 *     any state, exact RST of either end: RESET (both)
 *
 * A session picked up mid-stream starts with both ends ESTABLISHED and the silent one
 * marked UNLEARNT; the scale is not known and taken for the largest.  Both are marked
 * GUESSED for good: what passed before is not known, and if the first segments seen were
 * retransmissions, honest acknowledgements are ahead of all that was seen. */

#include "state_tcp.h"

#define SCALE_MASK 0x0f
#define SCALE_SEEN 0x80
#define UNLEARNT 0x40
#define GUESSED 0x20
#define MAX_SCALE 14
#define MIN_SLACK 66000u /* an unscaled window and a segment: what may be old or ahead */
#define MAX_AHEAD (1u << 28) /* with the largest windows still less than half of the circle */

#define LOAD(F) __atomic_load_n(&(F), __ATOMIC_RELAXED)
#define STORE(F, V) __atomic_store_n(&(F), V, __ATOMIC_RELAXED)

/* A segment with what is derived of it. */
struct seg {
    uint32_t seq, end, ack, win; /* win scaled */
    uint8_t flags;
    bool has_ack;
};

static inline bool before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static inline uint32_t max32(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Both ends must have offered the option (RFC 7323, section 2.2). */
static inline unsigned scale_of(uint8_t mine, uint8_t peers)
{
    return mine & peers & SCALE_SEEN ? mine & SCALE_MASK : 0;
}

static inline uint32_t segment_end(const struct moat_tcp_seg *s)
{
    return s->seq + s->len + !!(s->flags & MOAT_TCP_SYN) + !!(s->flags & MOAT_TCP_FIN);
}

static void rise(struct moat_ses_side *side, uint8_t to)
{
    uint8_t now = LOAD(side->state);

    while (now < to && !__atomic_compare_exchange_n(&side->state, &now, to, false,
                                                    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

/* --- the first packet --- */

static void open_with_syn(struct moat_ses_side *src, struct moat_ses_side *dst,
                          const struct moat_tcp_seg *s)
{
    uint32_t end = segment_end(s);

    STORE(src->seq_lo, end);
    STORE(src->seq_hi, end);
    STORE(src->max_win, s->win);
    STORE(src->wscale, s->wscale);
    STORE(src->state, MOAT_TCPS_SYN_SENT);
    STORE(dst->seq_lo, 0);
    STORE(dst->seq_hi, s->seq + 1); /* until it answers: what it must acknowledge at least */
    STORE(dst->max_win, 0);
    STORE(dst->wscale, 0);
    STORE(dst->state, MOAT_TCPS_NONE);
}

static void open_midstream(struct moat_ses_side *src, struct moat_ses_side *dst,
                           const struct moat_tcp_seg *s)
{
    uint32_t end = segment_end(s);

    STORE(src->seq_lo, end);
    STORE(src->seq_hi, end + (UINT16_MAX << MAX_SCALE));
    STORE(src->max_win, s->win);
    STORE(src->wscale, SCALE_SEEN | MAX_SCALE | GUESSED);
    STORE(src->state, s->flags & MOAT_TCP_FIN ? MOAT_TCPS_CLOSING : MOAT_TCPS_ESTABLISHED);
    STORE(dst->seq_lo, s->ack);
    STORE(dst->seq_hi, s->ack + max32((uint32_t)s->win << MAX_SCALE, MIN_SLACK));
    STORE(dst->max_win, UINT16_MAX);
    STORE(dst->wscale, SCALE_SEEN | MAX_SCALE | GUESSED | UNLEARNT);
    STORE(dst->state, MOAT_TCPS_ESTABLISHED);
}

enum moat_reason moat_tcp_open(struct moat_ses_side side[2], unsigned dir,
                               const struct moat_tcp_seg *s, bool loose)
{
    uint8_t f = s->flags & (MOAT_TCP_SYN | MOAT_TCP_ACK | MOAT_TCP_RST | MOAT_TCP_FIN);

    if (f == MOAT_TCP_SYN) {
        open_with_syn(&side[dir], &side[!dir], s);
        return MOAT_R_NONE;
    }
    if (!loose || f & (MOAT_TCP_RST | MOAT_TCP_SYN) || !(f & MOAT_TCP_ACK))
        return MOAT_R_TCP_NO_SESSION;
    open_midstream(&side[dir], &side[!dir], s);
    return MOAT_R_NONE;
}

/* --- the handshake --- */

/* A SYN's window is in bytes, later ones are scaled (RFC 7323, section 2.2). */
static uint16_t syn_window(uint16_t win, uint8_t mine, uint8_t peers)
{
    unsigned scale = scale_of(mine, peers);

    return scale ? (uint16_t)((win >> scale) + 1) : win;
}

/* The first packet of the end that was called: SYN|ACK, the SYN of a simultaneous open
 * (RFC 9293, figure 8), or a refusal. */
static enum moat_reason answer(struct moat_ses_side *src, struct moat_ses_side *dst,
                               const struct moat_tcp_seg *s)
{
    uint32_t end = segment_end(s), sent = LOAD(dst->seq_lo);
    bool acks = s->flags & MOAT_TCP_ACK;

    if (s->flags & MOAT_TCP_RST) {
        if (!acks || s->ack != sent)
            return MOAT_R_TCP_WINDOW;
        rise(src, MOAT_TCPS_RESET);
        rise(dst, MOAT_TCPS_RESET);
        return MOAT_R_NONE;
    }
    if (!(s->flags & MOAT_TCP_SYN))
        return MOAT_R_TCP_STATE;
    /* With data in the SYN (RFC 7413) less than all of it may be acknowledged. */
    if (acks && (before(sent, s->ack) || before(s->ack, LOAD(src->seq_hi))))
        return MOAT_R_TCP_WINDOW;
    STORE(src->seq_lo, end);
    STORE(src->seq_hi, end + max32(LOAD(dst->max_win), 1));
    STORE(src->max_win, syn_window(s->win, s->wscale, LOAD(dst->wscale)));
    STORE(src->wscale, s->wscale);
    STORE(dst->max_win, syn_window(LOAD(dst->max_win), LOAD(dst->wscale), s->wscale));
    STORE(dst->seq_hi, (acks ? s->ack : sent) + max32(s->win, 1));
    rise(src, MOAT_TCPS_SYN_SENT);
    if (acks)
        rise(dst, MOAT_TCPS_ESTABLISHED);
    return MOAT_R_NONE;
}

/* A SYN of an end that has sent one: only the very same again. */
static enum moat_reason again_syn(struct moat_ses_side *src, struct moat_ses_side *dst,
                                  const struct moat_tcp_seg *s)
{
    if (LOAD(dst->state) == MOAT_TCPS_NONE) {
        if (s->flags & MOAT_TCP_ACK)
            return MOAT_R_TCP_STATE;
        open_with_syn(src, dst, s); /* nobody has answered yet: it may start anew */
        return MOAT_R_NONE;
    }
    if (segment_end(s) != LOAD(src->seq_lo) || LOAD(src->state) > MOAT_TCPS_ESTABLISHED)
        return MOAT_R_TCP_STATE;
    if (s->flags & MOAT_TCP_ACK) {
        /* SYN|ACK: again, or the second half of a simultaneous open. */
        if (before(LOAD(dst->seq_lo), s->ack) ||
            before(s->ack, LOAD(dst->seq_lo) - MIN_SLACK))
            return MOAT_R_TCP_WINDOW;
        if (LOAD(dst->state) == MOAT_TCPS_SYN_SENT)
            rise(dst, MOAT_TCPS_ESTABLISHED);
    }
    return MOAT_R_NONE;
}

/* --- the established flow --- */

static bool fits(const struct moat_ses_side *src, const struct moat_ses_side *dst,
                 const struct seg *g, uint32_t src_win, uint32_t dst_win, bool lenient)
{
    uint32_t slack = max32(max32(src_win, dst_win), MIN_SLACK);
    uint32_t far = slack < MAX_AHEAD ? slack : MAX_AHEAD;
    uint32_t ahead = lenient ? far : 0;
    uint32_t ack_ahead = LOAD(dst->wscale) & GUESSED ? far : ahead;
    uint32_t lo = LOAD(src->seq_lo), peer_lo = LOAD(dst->seq_lo);
    /* Windows offered before the session was picked up may have been larger. */
    uint32_t behind = max32(dst_win, LOAD(src->wscale) & GUESSED ? MIN_SLACK : 1);

    if (before(LOAD(src->seq_hi) + ahead, g->end) || before(g->end, lo - behind - ahead))
        return false;
    if (g->has_ack && !(LOAD(dst->wscale) & UNLEARNT))
        return !before(peer_lo + ack_ahead, g->ack) &&
               !before(g->ack, peer_lo - max32(src_win, MIN_SLACK) - ahead);
    return true;
}

static void update(struct moat_ses_side *src, struct moat_ses_side *dst,
                   const struct moat_tcp_seg *s, const struct seg *g)
{
    uint8_t wscale = LOAD(src->wscale);

    if (__builtin_expect(wscale & UNLEARNT, 0)) {
        STORE(src->wscale, wscale & (uint8_t)~UNLEARNT);
        STORE(src->max_win, s->win);
    }
    if (s->win > LOAD(src->max_win))
        STORE(src->max_win, s->win);
    if (before(LOAD(src->seq_lo), g->end))
        STORE(src->seq_lo, g->end);
    if (before(LOAD(src->seq_hi), g->end))
        STORE(src->seq_hi, g->end); /* lenient */
    if (g->has_ack && before(LOAD(dst->seq_hi), g->ack + max32(g->win, 1)))
        STORE(dst->seq_hi, g->ack + max32(g->win, 1));
}

/* Is the whole stream of this end, with its FIN, acknowledged?  Only the ack of the FIN
 * itself counts. */
static void advance(struct moat_ses_side *src, struct moat_ses_side *dst, const struct seg *g)
{
    uint8_t peer = LOAD(dst->state);

    if (g->flags & MOAT_TCP_FIN)
        rise(src, MOAT_TCPS_CLOSING);
    if (g->has_ack && g->ack == LOAD(dst->seq_lo)) {
        if (peer == MOAT_TCPS_SYN_SENT)
            rise(dst, MOAT_TCPS_ESTABLISHED);
        else if (peer == MOAT_TCPS_CLOSING)
            rise(dst, MOAT_TCPS_FIN_ACKED);
    } else if (g->has_ack && peer == MOAT_TCPS_SYN_SENT) {
        rise(dst, MOAT_TCPS_ESTABLISHED);
    }
}

/* Exact: the connection is over.  Merely within the window: the receiver will challenge
 * it (RFC 5961, section 3.2), so it passes and nothing is believed. */
static enum moat_reason reset(struct moat_ses_side *src, struct moat_ses_side *dst,
                              const struct seg *g, uint32_t dst_win)
{
    uint32_t lo = LOAD(src->seq_lo);

    if (before(LOAD(src->seq_hi), g->seq) || before(g->seq, lo - max32(dst_win, 1)))
        return MOAT_R_TCP_WINDOW;
    if (g->seq == lo) {
        rise(src, MOAT_TCPS_RESET);
        rise(dst, MOAT_TCPS_RESET);
    }
    return MOAT_R_NONE;
}

enum moat_reason moat_tcp_track(struct moat_ses_side side[2], unsigned dir,
                                const struct moat_tcp_seg *s, bool lenient)
{
    struct moat_ses_side *src = &side[dir], *dst = &side[!dir];
    uint8_t src_scale = LOAD(src->wscale), dst_scale = LOAD(dst->wscale);
    uint8_t state = LOAD(src->state);
    uint32_t src_win, dst_win;
    struct seg g;

    if (__builtin_expect(state == MOAT_TCPS_NONE, 0))
        return answer(src, dst, s);
    if (__builtin_expect(s->flags & MOAT_TCP_SYN, 0))
        return again_syn(src, dst, s);
    g.seq = s->seq;
    g.end = segment_end(s);
    g.flags = s->flags;
    g.has_ack = s->flags & MOAT_TCP_ACK;
    g.ack = s->ack;
    g.win = (uint32_t)s->win << scale_of(src_scale, dst_scale);
    src_win = (uint32_t)LOAD(src->max_win) << scale_of(src_scale, dst_scale);
    dst_win = (uint32_t)LOAD(dst->max_win) << scale_of(dst_scale, src_scale);

    if (__builtin_expect(s->flags & MOAT_TCP_RST, 0))
        return reset(src, dst, &g, dst_win);
    if (!g.has_ack || LOAD(dst->state) == MOAT_TCPS_NONE)
        return MOAT_R_TCP_STATE;
    if (!fits(src, dst, &g, src_win, dst_win, lenient))
        return MOAT_R_TCP_WINDOW;
    /* Nothing new behind a FIN; nothing but answers after a reset. */
    if (__builtin_expect(state >= MOAT_TCPS_CLOSING, 0) &&
        (before(LOAD(src->seq_lo), g.end) || (state == MOAT_TCPS_RESET && s->len)))
        return MOAT_R_TCP_STATE;
    update(src, dst, s, &g);
    if (__builtin_expect((s->flags & MOAT_TCP_FIN) ||
                             LOAD(dst->state) != MOAT_TCPS_ESTABLISHED, 0))
        advance(src, dst, &g);
    return MOAT_R_NONE;
}

bool moat_tcp_reopens(const struct moat_ses_side side[2], const struct moat_tcp_seg *s)
{
    uint8_t a, b;

    if (__builtin_expect(!(s->flags & MOAT_TCP_SYN), 1) || s->flags & MOAT_TCP_ACK)
        return false;
    a = LOAD(side[0].state);
    b = LOAD(side[1].state);
    return (a == MOAT_TCPS_FIN_ACKED && b == MOAT_TCPS_FIN_ACKED) || a == MOAT_TCPS_RESET ||
           b == MOAT_TCPS_RESET;
}

enum moat_timer moat_tcp_timer(const struct moat_ses_side side[2])
{
    uint8_t a = LOAD(side[0].state), b = LOAD(side[1].state);
    uint8_t lo = a < b ? a : b, hi = a < b ? b : a;

    if (__builtin_expect(lo == MOAT_TCPS_ESTABLISHED && hi == MOAT_TCPS_ESTABLISHED, 1))
        return MOAT_T_TCP_ESTABLISHED;
    if (hi == MOAT_TCPS_RESET || lo == MOAT_TCPS_FIN_ACKED)
        return MOAT_T_TCP_CLOSED;
    if (lo >= MOAT_TCPS_CLOSING)
        return MOAT_T_TCP_FIN_WAIT;
    if (hi >= MOAT_TCPS_CLOSING)
        return MOAT_T_TCP_CLOSING;
    return lo == MOAT_TCPS_NONE ? MOAT_T_TCP_FIRST : MOAT_T_TCP_OPENING;
}

bool moat_tcp_valid(const struct moat_ses_side side[2])
{
    for (int d = 0; d < 2; d++)
        if (side[d].state >= MOAT_N_TCP_STATES || (side[d].wscale & SCALE_MASK) > MAX_SCALE ||
            side[d].wscale & (uint8_t)~(SCALE_MASK | SCALE_SEEN | UNLEARNT | GUESSED))
            return false;
    return side[0].state || side[1].state;
}
