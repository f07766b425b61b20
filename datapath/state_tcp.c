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
 * What passes unbelieved (MOAT_TCP_UNBELIEVED) moves none of this.  The end that opened the
 * session is marked OPENED.  While the called end has not answered its side is free: there
 * an acknowledgement is kept that belongs to an older connection (answer()).
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
#define OPENED 0x10
#define MAX_SCALE 14
#define MIN_SLACK MOAT_TCP_SLACK
#define NOWHERE (1u << 30)   /* seq_lo so far behind seq_hi: an end that was never heard */
#define MAX_AHEAD (1u << 28) /* with the largest windows still less than half of the circle */

_Static_assert(offsetof(struct moat_ses_side, wscale) ==
                       offsetof(struct moat_ses_side, max_win) + 2 &&
                   offsetof(struct moat_ses_side, state) ==
                       offsetof(struct moat_ses_side, max_win) + 3 &&
                   (UNLEARNT | GUESSED) == 0x60 && SCALE_SEEN == 0x80 && SCALE_MASK == 15,
               "moat_tcp_straight() reads them as one word");

#define LOAD(F) __atomic_load_n(&(F), __ATOMIC_RELAXED)
#define STORE(F, V) __atomic_store_n(&(F), V, __ATOMIC_RELAXED)

/* The established flow is one function; what is rare stays out of its way. */
#define STRAIGHT static inline __attribute__((always_inline))
#define RARE static __attribute__((noinline, cold))

/* A segment with what is derived of it. */
struct seg {
    uint32_t seq, data_end, end, ack, win; /* end: with FIN; win scaled */
    bool has_ack;
};

static inline bool before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

/* Two numbers that do not belong to one connection; a guess that is wrong once in 32000. */
static inline bool far_apart(uint32_t a, uint32_t b)
{
    return a - b + MIN_SLACK > 2 * MIN_SLACK;
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

    while (now < to && !__atomic_compare_exchange_n(&side->state, &now, to, false, __ATOMIC_RELAXED,
                                                    __ATOMIC_RELAXED))
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
    STORE(src->wscale, s->wscale | OPENED);
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
    STORE(src->wscale, SCALE_SEEN | MAX_SCALE | GUESSED | OPENED);
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

/* An end whose SYN is not acknowledged yet tells its numbers.  `sent` is what of the
 * other's it has acknowledged. */
RARE void learn_answer(struct moat_ses_side *src, struct moat_ses_side *dst,
                       const struct moat_tcp_seg *s, uint32_t sent)
{
    uint8_t peers = LOAD(dst->wscale), was = LOAD(src->wscale);
    uint32_t end = segment_end(s), left = LOAD(dst->seq_lo) - sent;
    uint32_t peers_win = (uint32_t)LOAD(dst->max_win) << scale_of(peers, was);
    uint16_t win = (uint16_t)max32(s->win, left); /* data of the SYN will come again */

    if (peers_win > UINT16_MAX) /* a window that syn_window() had rounded up */
        peers_win = UINT16_MAX;
    STORE(src->seq_lo, end);
    STORE(src->seq_hi, end + max32(peers_win, 1));
    STORE(src->max_win, syn_window(win, s->wscale, peers));
    STORE(src->wscale, s->wscale | (was & OPENED));
    STORE(dst->max_win, syn_window((uint16_t)peers_win, peers, s->wscale));
    STORE(dst->seq_hi, sent + max32(win, 1));
}

/* The first packet of the end that was called: SYN|ACK, the SYN of a simultaneous open
 * (RFC 9293, figure 8), a refusal, or an ACK of an older connection which it still has: the
 * caller will reset that (figure 9), with the number that is acknowledged here. */
RARE enum moat_reason answer(struct moat_ses_side *src, struct moat_ses_side *dst,
                             const struct moat_tcp_seg *s)
{
    uint32_t sent = LOAD(dst->seq_lo);
    bool acks = s->flags & MOAT_TCP_ACK;
    /* With data in the SYN (RFC 7413) less than all of it may be acknowledged. */
    bool acks_syn = acks && !before(sent, s->ack) && !before(s->ack, LOAD(src->seq_hi));

    if (s->flags & MOAT_TCP_RST) {
        if (!acks_syn)
            return MOAT_R_TCP_WINDOW;
        STORE(src->seq_lo, LOAD(src->seq_hi) + NOWHERE);
        rise(src, MOAT_TCPS_RESET);
        rise(dst, MOAT_TCPS_RESET);
        return MOAT_R_NONE;
    }
    if (!(s->flags & MOAT_TCP_SYN)) {
        if (!acks || s->flags & MOAT_TCP_FIN || s->len)
            return MOAT_R_TCP_STATE;
        STORE(src->seq_lo, s->ack);
        STORE(src->max_win, 1); /* seq_lo is in use */
        return MOAT_TCP_UNBELIEVED;
    }
    if (acks && !acks_syn)
        return MOAT_R_TCP_WINDOW;
    learn_answer(src, dst, s, acks ? s->ack : sent);
    rise(src, MOAT_TCPS_SYN_SENT);
    if (acks)
        rise(dst, MOAT_TCPS_ESTABLISHED);
    return MOAT_R_NONE;
}

/* A SYN of an end that has sent one.  Nobody has answered: it may start anew with another
 * number.  With the same one it may lack the data (RFC 7413, section 4.1.3) or options of
 * the first; which of them is answered is not known, and the widest counts. */
RARE enum moat_reason again_syn(struct moat_ses_side *src, struct moat_ses_side *dst,
                                const struct moat_tcp_seg *s)
{
    uint32_t was = LOAD(src->seq_lo), end = segment_end(s);
    bool opened = LOAD(src->wscale) & OPENED;

    if (LOAD(dst->state) == MOAT_TCPS_NONE && s->seq + 1 == LOAD(dst->seq_hi)) {
        if (before(was, end)) {
            STORE(src->seq_lo, end);
            STORE(src->seq_hi, end);
        }
        if (LOAD(src->max_win) < s->win)
            STORE(src->max_win, s->win);
        if ((LOAD(src->wscale) & (SCALE_SEEN | SCALE_MASK)) < s->wscale)
            STORE(src->wscale, s->wscale | OPENED);
        return MOAT_R_NONE;
    }
    if (LOAD(dst->state) == MOAT_TCPS_NONE) {
        open_with_syn(src, dst, s);
        return MOAT_R_NONE;
    }
    if (end == was && (LOAD(dst->state) == MOAT_TCPS_SYN_SENT ||
                       (opened && LOAD(src->state) == MOAT_TCPS_SYN_SENT)))
        return MOAT_R_NONE;
    return opened ? MOAT_TCP_UNBELIEVED : MOAT_R_TCP_STATE;
}

/* --- the established flow --- */

STRAIGHT bool fits(const struct moat_ses_side *src, const struct moat_ses_side *dst,
                   const struct seg *g, uint32_t src_win, uint32_t dst_win, bool lenient)
{
    uint32_t slack = max32(max32(src_win, dst_win), MIN_SLACK);
    uint32_t far = slack < MAX_AHEAD ? slack : MAX_AHEAD;
    uint32_t ahead = lenient ? far : 0;
    uint32_t ack_ahead = LOAD(dst->wscale) & GUESSED ? far : ahead;
    uint32_t lo = LOAD(src->seq_lo), peer_lo = LOAD(dst->seq_lo);
    /* Windows offered before the session was picked up may have been larger. */
    uint32_t behind = max32(dst_win, LOAD(src->wscale) & GUESSED ? MIN_SLACK : 1);

    /* A FIN needs no room: some stacks send it one behind the edge. */
    if (before(LOAD(src->seq_hi) + ahead, g->data_end) || before(g->end, lo - behind - ahead))
        return false;
    if (g->has_ack && !(LOAD(dst->wscale) & UNLEARNT))
        return !before(peer_lo + ack_ahead, g->ack) &&
               !before(g->ack, peer_lo - max32(src_win, MIN_SLACK) - ahead);
    return true;
}

STRAIGHT void update(struct moat_ses_side *src, struct moat_ses_side *dst,
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
RARE void advance(struct moat_ses_side *src, struct moat_ses_side *dst,
                  const struct moat_tcp_seg *s)
{
    uint8_t peer = LOAD(dst->state);

    if (s->flags & MOAT_TCP_FIN)
        rise(src, MOAT_TCPS_CLOSING);
    if (peer == MOAT_TCPS_SYN_SENT)
        rise(dst, MOAT_TCPS_ESTABLISHED);
    else if (peer == MOAT_TCPS_CLOSING && s->ack == LOAD(dst->seq_lo))
        rise(dst, MOAT_TCPS_FIN_ACKED);
}

/* The VM answers a SYN that passed unbelieved as one that has no such connection: it was
 * called, and it was reset meanwhile.  Nobody else can send in its name.  The answer does not
 * fit, but the caller's next SYN will open anew. */
RARE void knows_nothing(struct moat_ses_side *vm, struct moat_ses_side *caller)
{
    if (LOAD(vm->wscale) & OPENED || LOAD(vm->state) < MOAT_TCPS_ESTABLISHED)
        return;
    rise(vm, MOAT_TCPS_RESET);
    rise(caller, MOAT_TCPS_RESET);
}

/* A RST of an end that nobody has answered: it gives up, or it resets the older connection
 * of the end that it called; then it goes on with its own. */
RARE enum moat_reason reset_unanswered(struct moat_ses_side *src, struct moat_ses_side *dst,
                                       const struct moat_tcp_seg *s)
{
    if (s->flags & MOAT_TCP_ACK && s->ack)
        return MOAT_R_TCP_WINDOW; /* there is nothing to acknowledge */
    if (s->seq == LOAD(src->seq_lo)) {
        STORE(dst->seq_hi, LOAD(dst->seq_lo) - NOWHERE);
        rise(src, MOAT_TCPS_RESET);
        rise(dst, MOAT_TCPS_RESET);
        return MOAT_R_NONE;
    }
    if (LOAD(dst->max_win) && s->seq == LOAD(dst->seq_lo))
        return MOAT_TCP_UNBELIEVED;
    return MOAT_R_TCP_WINDOW;
}

/* Exact: the connection is over.  Merely within the window: the receiver will challenge
 * it (RFC 5961, section 3.2), so it passes and nothing is believed.  Exact to the receiver
 * is what it has acknowledged, and that may be less than what was sent; it is not less than
 * the edge without the largest window. */
RARE enum moat_reason reset(struct moat_ses_side *src, struct moat_ses_side *dst,
                            const struct moat_tcp_seg *s, uint32_t dst_win, bool from_vm,
                            bool lenient)
{
    bool guessed = (LOAD(src->wscale) | LOAD(dst->wscale)) & GUESSED;
    uint32_t lo = LOAD(src->seq_lo), hi = LOAD(src->seq_hi), low = hi - max32(dst_win, 1);
    uint32_t slack = dst_win < MAX_AHEAD ? max32(dst_win, MIN_SLACK) : MAX_AHEAD;
    bool acks = s->flags & MOAT_TCP_ACK && s->ack; /* some stacks leave it 0 */

    if (LOAD(src->state) >= MOAT_TCPS_CLOSING)
        low--; /* the FIN may have moved the edge */
    if (guessed || lenient) {
        low = lo - slack;
        hi += lenient ? slack : 0;
    } else if (acks && before(LOAD(dst->seq_lo), s->ack)) {
        low = hi + 1; /* nothing fits */
    }
    if (before(hi, lo) || before(hi, low) || before(hi, s->seq + s->len) ||
        (s->seq != lo && s->seq - low > hi - low)) {
        if (from_vm && acks && far_apart(LOAD(dst->seq_lo), s->ack))
            knows_nothing(src, dst);
        return MOAT_R_TCP_WINDOW;
    }
    if (s->seq != lo && LOAD(src->state) == MOAT_TCPS_SYN_SENT)
        return MOAT_R_TCP_WINDOW; /* it has not been offered any window */
    if (s->seq != lo || LOAD(src->state) == MOAT_TCPS_RESET)
        return MOAT_TCP_UNBELIEVED;
    rise(src, MOAT_TCPS_RESET);
    rise(dst, MOAT_TCPS_RESET);
    return MOAT_R_NONE;
}

/* What the segment says, in the terms of both sides. */
STRAIGHT void measure(const struct moat_ses_side *src, const struct moat_ses_side *dst,
                      const struct moat_tcp_seg *s, struct seg *g, uint32_t *src_win,
                      uint32_t *dst_win)
{
    uint8_t src_scale = LOAD(src->wscale), dst_scale = LOAD(dst->wscale);

    g->seq = s->seq;
    g->data_end = s->seq + s->len;
    g->end = segment_end(s);
    g->has_ack = s->flags & MOAT_TCP_ACK;
    g->ack = s->ack;
    g->win = (uint32_t)s->win << scale_of(src_scale, dst_scale);
    *src_win = (uint32_t)LOAD(src->max_win) << scale_of(src_scale, dst_scale);
    *dst_win = (uint32_t)LOAD(dst->max_win) << scale_of(dst_scale, src_scale);
}

/* A SYN|ACK again may offer more. */
RARE void widen(struct moat_ses_side *src, struct moat_ses_side *dst, const struct moat_tcp_seg *s)
{
    uint16_t win = syn_window(s->win, LOAD(src->wscale), LOAD(dst->wscale));
    uint32_t hi = s->ack + max32(s->win, 1);

    if (LOAD(src->max_win) < win)
        STORE(src->max_win, win);
    if (before(LOAD(dst->seq_hi), hi))
        STORE(dst->seq_hi, hi);
}

/* A SYN|ACK of an end that has sent a SYN: again, the second half of a simultaneous open,
 * or with another number of an end that has forgotten the first one (SYN cookies): the
 * last one counts as long as none was acknowledged. */
RARE enum moat_reason again_syn_ack(struct moat_ses_side *src, struct moat_ses_side *dst,
                                    const struct moat_tcp_seg *s, bool from_vm, bool lenient)
{
    uint8_t mine = LOAD(src->state), peers = LOAD(dst->state);
    uint32_t src_win, dst_win;
    struct seg g;
    bool in_window;

    if (peers == MOAT_TCPS_NONE || before(LOAD(src->seq_hi), LOAD(src->seq_lo)))
        return MOAT_R_TCP_STATE; /* not answered; never heard */
    measure(src, dst, s, &g, &src_win, &dst_win);
    in_window = fits(src, dst, &g, src_win, dst_win, lenient);
    if (mine == MOAT_TCPS_SYN_SENT && peers == MOAT_TCPS_ESTABLISHED &&
        s->ack == LOAD(dst->seq_lo) && (!in_window || before(LOAD(src->seq_lo), g.end))) {
        learn_answer(src, dst, s, s->ack);
        return MOAT_R_NONE;
    }
    if (!in_window) {
        if (from_vm && far_apart(LOAD(src->seq_lo), s->seq))
            knows_nothing(src, dst); /* and it is not a late one */
        return MOAT_R_TCP_WINDOW;
    }
    if (mine == MOAT_TCPS_SYN_SENT ||
        (mine == MOAT_TCPS_ESTABLISHED && g.end == LOAD(src->seq_lo) && !s->len)) {
        widen(src, dst, s);
        if (peers == MOAT_TCPS_SYN_SENT)
            rise(dst, MOAT_TCPS_ESTABLISHED);
        return MOAT_R_NONE;
    }
    /* An old one, late.  The end that called has one to send only in a simultaneous open. */
    if (LOAD(src->wscale) & OPENED || before(LOAD(src->seq_lo), g.end))
        return MOAT_R_TCP_STATE;
    return MOAT_TCP_UNBELIEVED;
}

/* A segment with a FIN or behind one, or after a reset.  There is nothing new behind a FIN,
 * nothing is believed after a reset, and a FIN needs room only where no window is known. */
RARE enum moat_reason closing(const struct moat_ses_side *src, uint32_t end)
{
    uint32_t lo = LOAD(src->seq_lo), hi = LOAD(src->seq_hi);

    switch (LOAD(src->state)) {
    case MOAT_TCPS_RESET:
        return before(hi, lo) ? MOAT_R_TCP_WINDOW : MOAT_TCP_UNBELIEVED;
    case MOAT_TCPS_SYN_SENT:
        return before(hi, end) ? MOAT_R_TCP_WINDOW : MOAT_R_NONE;
    case MOAT_TCPS_ESTABLISHED:
        return MOAT_R_NONE;
    default:
        return before(lo, end) ? MOAT_R_TCP_STATE : MOAT_R_NONE;
    }
}

enum moat_reason moat_tcp_track(struct moat_ses_side side[2], unsigned dir,
                                const struct moat_tcp_seg *s, bool lenient)
{
    struct moat_ses_side *src = &side[dir], *dst = &side[!dir];
    uint8_t state = LOAD(src->state);
    uint32_t src_win, dst_win;
    struct seg g;

    if (__builtin_expect(state == MOAT_TCPS_NONE, 0))
        return answer(src, dst, s);
    if (__builtin_expect(s->flags & MOAT_TCP_SYN, 0))
        return s->flags & MOAT_TCP_ACK ? again_syn_ack(src, dst, s, dir == MOAT_FROM_VM, lenient)
                                       : again_syn(src, dst, s);
    measure(src, dst, s, &g, &src_win, &dst_win);
    if (__builtin_expect(s->flags & MOAT_TCP_RST, 0))
        return LOAD(dst->state) == MOAT_TCPS_NONE
                   ? reset_unanswered(src, dst, s)
                   : reset(src, dst, s, dst_win, dir == MOAT_FROM_VM, lenient);
    /* Nothing but SYNs until either end has acknowledged the other's. */
    if (!g.has_ack || (state | LOAD(dst->state)) == MOAT_TCPS_SYN_SENT)
        return MOAT_R_TCP_STATE;
    if (!fits(src, dst, &g, src_win, dst_win, lenient))
        return MOAT_R_TCP_WINDOW;
    if (__builtin_expect((s->flags & MOAT_TCP_FIN) | (state >= MOAT_TCPS_CLOSING), 0)) {
        enum moat_reason reason = closing(src, g.end);

        if (reason)
            return reason;
    }
    update(src, dst, s, &g);
    if (__builtin_expect((s->flags & MOAT_TCP_FIN) || LOAD(dst->state) != MOAT_TCPS_ESTABLISHED, 0))
        advance(src, dst, s);
    return MOAT_R_NONE;
}

/* The VM itself calls again, though its connection lives: it was reset and remembers nothing.
 * Nobody else can send in its name.  Its first SYN, repeated, is not that. */
static bool forgot(const struct moat_ses_side *vm, const struct moat_ses_side *peer,
                   const struct moat_tcp_seg *s)
{
    return LOAD(vm->wscale) & OPENED && LOAD(peer->state) != MOAT_TCPS_NONE &&
           far_apart(LOAD(vm->seq_lo), s->seq);
}

bool moat_tcp_syn_reopens(const struct moat_ses_side side[2], unsigned dir,
                          const struct moat_tcp_seg *s)
{
    uint8_t mine = LOAD(side[dir].state), peers = LOAD(side[!dir].state);

    if (dir == MOAT_FROM_VM && forgot(&side[dir], &side[!dir], s))
        return true;
    return mine == MOAT_TCPS_RESET || peers == MOAT_TCPS_RESET ||
           (peers == MOAT_TCPS_FIN_ACKED &&
            (mine == MOAT_TCPS_FIN_ACKED ||
             (mine == MOAT_TCPS_CLOSING && before(LOAD(side[dir].seq_lo), s->seq))));
}

bool moat_tcp_half_open(const struct moat_ses_side side[2])
{
    uint8_t a = LOAD(side[0].state), b = LOAD(side[1].state);

    return max32(a, b) <= MOAT_TCPS_ESTABLISHED &&
           (a < MOAT_TCPS_ESTABLISHED || b < MOAT_TCPS_ESTABLISHED);
}

bool moat_tcp_was_sent(const struct moat_ses_side side[2], unsigned dir, uint32_t seq)
{
    const struct moat_ses_side *src = &side[dir], *dst = &side[!dir];
    uint8_t src_scale = LOAD(src->wscale), dst_scale = LOAD(dst->wscale);
    uint32_t lo = LOAD(src->seq_lo);
    uint32_t win = (uint32_t)LOAD(dst->max_win) << scale_of(dst_scale, src_scale);
    uint32_t slack = win < MAX_AHEAD ? max32(win, MIN_SLACK) : MAX_AHEAD;

    if (LOAD(src->state) == MOAT_TCPS_NONE)
        return false;
    if (LOAD(dst->state) == MOAT_TCPS_NONE) /* the SYN alone */
        return !before(seq, LOAD(dst->seq_hi) - 1) && !before(lo, seq);
    if (src_scale & GUESSED)
        lo += slack;
    return !before(lo, seq) && !before(seq, LOAD(src->seq_lo) - slack);
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
            (side[d].state == MOAT_TCPS_NONE && side[!d].state != MOAT_TCPS_SYN_SENT))
            return false;
    return !(side[0].wscale & side[1].wscale & OPENED);
}
