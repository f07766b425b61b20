/* SPDX-License-Identifier: Apache-2.0 */

#include "approved.h"

#include <string.h>

#include "datapath/state_tcp.h"

#define FIN MOAT_TCP_FIN
#define SYN MOAT_TCP_SYN
#define RST MOAT_TCP_RST
#define ACK MOAT_TCP_ACK

static bool before(uint32_t a, uint32_t b)
{
    return (int32_t)(a - b) < 0;
}

static bool is_syn(const struct packet *p)
{
    return (p->flags & (SYN | ACK)) == SYN;
}

static bool is_syn_ack(const struct packet *p)
{
    return (p->flags & (SYN | ACK)) == (SYN | ACK);
}

static uint32_t end_of(const struct packet *p)
{
    return p->seq + p->len + !!(p->flags & SYN) + !!(p->flags & FIN);
}

static uint8_t state(const struct seen *s, unsigned who)
{
    return s->before[who].state;
}

/* Before an answer came, a SYN with another number or other options. */
static bool is_other_syn(const struct packet *p, const struct seen *s)
{
    return is_syn(p) && state(s, p->from) == MOAT_TCPS_SYN_SENT &&
           state(s, !p->from) == MOAT_TCPS_NONE &&
           (p->seq + 1 != s->before[!p->from].seq_hi ||
            p->wscale != (s->before[p->from].wscale & 0x8f));
}

/* --- what came before --- */

/* A packet that Moat passed. */
static void look_at(struct past *h, const struct packet *p, const struct seen *s)
{
    unsigned who = p->from;

    if (!s->live) {
        struct past fresh = {.talk = h->talk,
                             .seen = h->seen,
                             .i = h->i,
                             .mode = h->mode,
                             .used = h->answered || h->used || h->half_open,
                             .forged = h->forged,
                             .refused = h->refused,
                             .refused_syn = h->refused_syn,
                             .end = {p->seq, p->seq}};

        *h = fresh;
    } else if (is_syn(p)) {
        if (s->unbelieved)
            h->challenged = true;
        else if (state(s, who) == MOAT_TCPS_NONE)
            h->simultaneous = true;
        else
            h->other_syn |= is_other_syn(p, s);
    } else if (is_syn_ack(p)) {
        if (!s->unbelieved && state(s, who) == MOAT_TCPS_SYN_SENT &&
            p->seq + p->len + 1 != s->before[who].seq_lo)
            h->other_answer = true;
        h->late_answer |= s->unbelieved;
        h->early_left |= state(s, who) == MOAT_TCPS_NONE && p->ack != s->before[!who].seq_lo;
    } else if (s->unbelieved && state(s, who) == MOAT_TCPS_NONE) {
        h->half_open = true;
    }
    if (s->live && !s->unbelieved && state(s, who) == MOAT_TCPS_NONE)
        h->answered = true;
    if (!s->unbelieved && (state(s, who) == MOAT_TCPS_NONE || before(h->end[who], end_of(p))))
        h->end[who] = end_of(p);
    if (p->flags & ACK && (!h->acks[who] || before(h->acked[who], p->ack))) {
        h->acks[who] = true;
        h->acked[who] = p->ack;
    }
    h->lost_ovs |= !s->ovs[h->mode];
    h->lost_kernel |= !s->kernel[h->mode];
    /* A RST that is not exact, and that its receiver did not believe, is none that fits. */
    h->forged |= p->forged &&
                 !(p->flags & RST && p->seq != s->before[who].seq_lo && p->arrived && !p->useful);
}

void look_back(struct past *h, const struct talk *t, const struct seen *seen, unsigned i,
               enum mode mode)
{
    memset(h, 0, sizeof *h);
    h->talk = t;
    h->seen = seen;
    h->i = i;
    h->mode = mode;
    for (unsigned k = 0; k < i; k++) {
        if (seen[k].reason) {
            h->refused = true;
            h->refused_syn |= t->p[k].kind == K_TCP && is_syn(&t->p[k]);
        } else if (t->p[k].kind == K_TCP) {
            look_at(h, &t->p[k], &seen[k]);
        }
    }
}

/* --- looser --- */

static bool old_reset(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)s;
    return p->flags & RST && h->acks[!p->from] && before(p->seq, h->acked[!p->from]);
}

static bool edge(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)h;
    return s->live && before(s->before[p->from].seq_lo, p->seq) &&
           ((p->flags & RST && s->unbelieved) || state(s, p->from) == MOAT_TCPS_SYN_SENT);
}

static bool early_data(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    return h->early_left && s->live;
}

static bool half_open(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    return h->half_open && s->live;
}

static bool simultaneous(const struct past *h, const struct packet *p, const struct seen *s)
{
    bool opener = s->before[p->from].wscale & 0x10;

    return s->live && (h->simultaneous || (is_syn(p) && state(s, p->from) == MOAT_TCPS_NONE) ||
                       (is_syn_ack(p) && opener));
}

static bool other_syn(const struct past *h, const struct packet *p, const struct seen *s)
{
    return s->live && (h->other_syn || is_other_syn(p, s));
}

static bool other_answer(const struct past *h, const struct packet *p, const struct seen *s)
{
    return s->live &&
           (h->other_answer || (is_syn_ack(p) && state(s, p->from) == MOAT_TCPS_SYN_SENT &&
                                end_of(p) != s->before[p->from].seq_lo));
}

static bool challenged(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    return h->challenged && s->live;
}

static bool used(const struct past *h, const struct packet *p, const struct seen *s)
{
    return s->live ? h->used : is_syn(p) && (h->answered || h->used || h->half_open);
}

static bool sack_ahead(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)s;
    for (unsigned k = 0; k < p->n_sack; k++)
        if (before(h->end[!p->from], p->sack[k][1]))
            return true;
    return false;
}

static bool refused_syn(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    return h->mode == SIDE_BY_SIDE && h->refused_syn && s->live;
}

static bool after_reset(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)h;
    (void)p;
    return s->live && s->unbelieved && state(s, CLIENT) == MOAT_TCPS_RESET;
}

static bool nobody_follows(const struct past *h, const struct packet *p, const struct seen *s)
{
    /* Open vSwitch itself has no mercy with a RST or a FIN that does not fit exactly. */
    return s->live && h->lost_kernel && (h->lost_ovs || p->flags & (RST | FIN));
}

static bool looser_after_forgery(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    return s->live && h->forged && (h->lost_ovs || h->lost_kernel);
}

static bool redirect(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)s;
    return p->kind == K_ERROR && h->talk->family == 4 && p->type == 5;
}

/* --- stricter --- */

static bool empty_quote(const struct past *h, const struct packet *p, const struct seen *s)
{
    const struct packet *q = p->quotes >= 0 ? &h->talk->p[p->quotes] : 0;

    (void)s;
    return p->kind == K_ERROR && q && q->kind == K_OTHER && q->len < 8;
}

static bool forged(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)h;
    (void)s;
    return p->forged;
}

static bool no_use(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)h;
    (void)s;
    return p->kind == K_TCP && !p->useful;
}

static bool after_forgery(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    (void)s;
    return h->forged;
}

static bool after_refusal(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    (void)s;
    return h->refused;
}

static bool earlier_syn(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)s;
    if (!(p->flags & ACK) || !(p->flags & (SYN | RST)))
        return false;
    for (unsigned k = 0; k < h->i; k++) {
        const struct packet *q = &h->talk->p[k];

        if (is_syn(q) && q->from != p->from && !h->seen[k].reason && !before(end_of(q), p->ack) &&
            before(q->seq, p->ack))
            return true;
    }
    return false;
}

static bool older_connection(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)s;
    return p->flags & RST && !(p->flags & ACK) && !h->answered && (h->used || h->half_open);
}

static bool two_answers(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    (void)s;
    return h->other_answer;
}

static bool late_syn_ack(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    (void)s;
    return h->late_answer;
}

static bool lost_fin(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)h;
    return s->live && !p->len && p->seq == s->before[p->from].seq_hi + 1;
}

static bool bare_reset(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)h;
    return p->flags & RST && !(p->flags & ACK) && s->live && state(s, p->from) == MOAT_TCPS_NONE;
}

static bool simultaneous_data(const struct past *h, const struct packet *p, const struct seen *s)
{
    (void)p;
    (void)s;
    for (unsigned k = 0; k < h->i; k++)
        if (is_syn(&h->talk->p[k]) && h->talk->p[k].len)
            return h->simultaneous;
    return false;
}

/* clang-format off */
const struct approved approved[] = {
    {"old-reset", LOOSER, old_reset,
     "a RST below what its receiver has acknowledged, but within the largest window that it "
     "offered: Moat keeps the edge of the window, not the acknowledgement; it believes "
     "nothing of it and the receiver drops it (RFC 5961, 3.2)"},
    {"at-the-edge", LOOSER, edge,
     "a RST that is not exact, or a segment of an end whose SYN nobody has acknowledged yet, "
     "at the far end of the window: Moat's edge may be above the kernel's, by the rounding "
     "of a scaled window, by the window of an old segment or by that of the SYN; the RST is "
     "not believed and will be challenged (RFC 5961, 3.2), which Open vSwitch lets nobody do"},
    {"data-of-the-syn", LOOSER, early_data,
     "the called end has not taken all data of the SYN (RFC 7413): it comes again, from "
     "below what was sent already; the kernel ignores it when the window is smaller, and "
     "loses track"},
    {"used-again", LOOSER, used,
     "the tuple of a connection that is over is used again, by either end that may call: the "
     "kernel keeps the old one until the answer, and lets the end that was called not call"},
    {"half-open", LOOSER, half_open,
     "the called end still has an older connection; the RST that the caller sends for that "
     "one is not the end of the call (RFC 9293, 3.5.1), the kernel takes it for that and "
     "Open vSwitch knows no such case"},
    {"simultaneous-open", LOOSER, simultaneous,
     "both ends call (RFC 9293, 3.5): for Open vSwitch the second SYN is a new connection, "
     "the kernel takes the first ACK for the end of the handshake"},
    {"another-first-syn", LOOSER, other_syn,
     "before an answer came the caller sent another SYN: with another number the last one "
     "counts, with other options the widest; Open vSwitch keeps the first one, the kernel "
     "the higher one"},
    {"another-syn-ack", LOOSER, other_answer,
     "an end that keeps no state (SYN cookies) answers a SYN that comes again with another "
     "number, and acknowledges the right one: the last answer counts until it is "
     "acknowledged"},
    {"challenged-syn", LOOSER, challenged,
     "a SYN on a connection that lives passes to be challenged and is not believed; both "
     "others may begin anew with it, what belongs to the connection is strange to them then"},
    {"sack-ahead", LOOSER, sack_ahead,
     "a SACK block for what was not sent: the kernel takes its edge for an acknowledgement, "
     "Moat does not look at SACK; the acknowledgement itself fits"},
    {"refused-syn", LOOSER, refused_syn,
     "side by side, a SYN of the end that may not call: both others forget the connection "
     "before their rules refuse the SYN; to Moat it is nothing"},
    {"after-a-reset", LOOSER, after_reset,
     "what is within the windows of a connection that was reset passes unbelieved for a few "
     "seconds, so that its sender hears of the reset; both others forget some resets at once"},
    {"nobody-follows", LOOSER, nobody_follows,
     "both others have refused packets of the connection before, which the other one or an "
     "approval above let pass: they are in other states and no measure any more"},
    {"after-a-forgery", LOOSER, looser_after_forgery,
     "a forged packet fitted to Moat and to one of the others, which followed it; the other "
     "one passed or refused it without following, and only that one's verdict is left"},
    {"redirect", LOOSER, redirect,
     "an ICMP redirect is no error of a session: the rules alone admit it, if they admit all"},

    {"forged", STRICTER, forged,
     "the adversary's"},
    {"redirected", STRICTER, redirect,
     "an ICMP redirect is no error of a session: rules refuse it, and the VM may send none"},
    {"empty-quote", STRICTER, empty_quote,
     "an error about a packet with less than 8 bytes behind its IP header: nothing that is "
     "sent is so short"},
    {"of-no-use", STRICTER, no_use,
     "its receiver learnt nothing of it: old, out of its window, or for a connection that it "
     "does not have"},
    {"fitting-forgery", STRICTER, after_forgery,
     "a forged packet fitted and passed, and was not one that its receiver would challenge: "
     "Moat believes its numbers, its FIN or its RST"},
    {"after-a-refusal", STRICTER, after_refusal,
     "side by side what Moat refused arrives all the same, and is answered"},
    {"simultaneous-open-with-data", STRICTER, simultaneous_data,
     "data in the SYNs of a simultaneous open: nobody does that (RFC 7413, 4.1)"},
    {"answer-to-an-earlier-syn", STRICTER, earlier_syn,
     "the answer to a SYN that the caller has replaced, or that passed unbelieved to an end "
     "that had forgotten the connection: the caller will send its SYN again, and the answer "
     "to that fits"},
    {"late-syn-ack", STRICTER, late_syn_ack,
     "a SYN|ACK within the windows that belongs to another connection (an old one that came "
     "late, or by chance the next one's) passed unbelieved and was answered by an end that "
     "had forgotten all"},
    {"lost-fin", STRICTER, lost_fin,
     "an acknowledgement behind a FIN that was sent without room and was lost: the FIN will "
     "come again"},
    {"two-answers", STRICTER, two_answers,
     "two SYN|ACKs with different numbers passed before either was acknowledged, and the "
     "caller took the first: it will be reset by the end that sent both"},
    {"reset-of-an-older-connection", STRICTER, older_connection,
     "the caller resets a connection before its present call without having been challenged "
     "for it in this one: it will be, if the other end still has it"},
    {"bare-reset-answers-a-syn", STRICTER, bare_reset,
     "a RST without ACK says nothing to an end in SYN-SENT (RFC 9293, 3.10.7.3)"},
};
/* clang-format on */

const unsigned n_approved = sizeof approved / sizeof *approved;

int find_approved(enum difference difference, const struct past *h)
{
    const struct packet *p = &h->talk->p[h->i];

    for (unsigned a = 0; a < n_approved; a++)
        if (approved[a].difference == difference && approved[a].applies(h, p, &h->seen[h->i]))
            return (int)a;
    return -1;
}
