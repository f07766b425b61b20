/* SPDX-License-Identifier: Apache-2.0 */

/* One frame: moat_parse(), moat_parse_quoted(), moat_pkt_flow().  Besides what parse.h
 * promises: how a frame lies in memory and what pads it must not change what it means. */

#include "datapath/parse.h"

#include "tests/fuzz/fuzz.h"

static unsigned addr_len(const struct moat_pkt *p)
{
    return p->family == MOAT_FAM_IP6 ? 16 : 4;
}

static bool within(const struct moat_pkt *p, const uint8_t *at, unsigned n)
{
    return at >= p->data && at + n <= p->data + p->len;
}

static void check_fields(const struct moat_pkt *p)
{
    HOLDS((p->kind == MOAT_PKT_BAD) == (p->reason != MOAT_R_NONE));
    HOLDS(p->kind <= MOAT_PKT_IP_OTHER && p->reason < MOAT_N_REASONS);
    HOLDS(p->n_tags <= 2 && p->vlan <= 0xfff && p->cast <= MOAT_BROADCAST);
    if (p->reason)
        return;
    HOLDS(p->l3_off >= 14 && p->l3_off <= p->len && p->l4_off <= p->len);
    HOLDS(within(p, p->src, addr_len(p)) && within(p, p->dst, addr_len(p)));
    HOLDS(p->frag <= 2 && p->frag_at + p->frag_len <= 65535);
    HOLDS(p->frag || (!p->frag_more && !p->frag_id && !p->frag_at && !p->frag_len));
    HOLDS(p->frag != 1 || !p->frag_at);
    if (p->kind == MOAT_PKT_TCP) {
        HOLDS(p->tcp.len < p->total && p->sport && p->dport);
        HOLDS(!p->tcp.wscale || (p->tcp.wscale & 0x80 && (p->tcp.wscale & 0x7f) <= 14));
    }
    if (p->kind == MOAT_PKT_TCP || p->kind == MOAT_PKT_UDP || p->kind == MOAT_PKT_ICMP_QUERY)
        HOLDS(p->l4_off + 8u <= p->len);
}

/* All output fields, padding too, which moat_parse() clears; pointers as offsets. */
static bool same(const struct moat_pkt *a, const struct moat_pkt *b)
{
    struct moat_pkt x;

    memcpy(&x, a, sizeof x);
    x.data = b->data;
    x.len = b->len;
    x.total = b->total;
    x.src = a->src ? b->data + (a->src - a->data) : NULL;
    x.dst = a->dst ? b->data + (a->dst - a->data) : NULL;
    return !memcmp(&x, b, sizeof x);
}

static void parse(struct moat_pkt *p, const uint8_t *data, uint32_t len, uint32_t total)
{
    memset(p, 0, sizeof *p);
    p->data = data;
    p->len = len;
    p->total = total;
    moat_parse(p);
    check_fields(p);
}

static void check_rest(const struct moat_pkt *p)
{
    struct moat_flow flow;
    struct moat_pkt q;

    memset(&q, 0, sizeof q);
    if (moat_parse_quoted(p, &q)) {
        HOLDS(p->kind == MOAT_PKT_ICMP_ERROR && q.kind != MOAT_PKT_ICMP_ERROR);
        HOLDS(q.kind != MOAT_PKT_BAD && !q.reason);
        HOLDS(within(p, q.src, addr_len(&q)) && within(p, q.dst, addr_len(&q)));
        HOLDS(q.family == p->family && !memcmp(q.src, p->dst, addr_len(p)));
        HOLDS(q.src > p->data + p->l4_off && q.l4_off > p->l4_off && q.vlan == p->vlan);
    }
    if (p->reason)
        return;
    for (unsigned dir = 0; dir < 2; dir++) {
        moat_pkt_flow(p, dir, &flow);
        HOLDS(flow.dir == dir && flow.family == p->family && flow.proto == p->proto);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    struct choice c;
    struct moat_pkt whole, part;
    uint8_t *data, *head;
    uint32_t extra, cut, n;

    choice_bytes(&c, input, size);
    extra = choice_below(&c, 4) ? 0 : choice_below(&c, 70000);
    cut = choice_below(&c, 1024);
    n = (uint32_t)c.left;
    data = fuzz_exact(c.p, n);
    parse(&whole, data, n, n + extra);
    check_rest(&whole);

    /* Another segment begins at `cut`. */
    cut = cut < n ? cut : n;
    head = fuzz_exact(data, cut);
    parse(&part, head, cut, n + extra);
    if (!part.reason && !whole.reason)
        HOLDS(same(&part, &whole));
    HOLDS(part.reason || !whole.reason);

    /* Padding. */
    parse(&part, data, n, n + extra + 1000);
    if (!whole.reason)
        HOLDS(same(&part, &whole));
    free(head);
    free(data);
    return 0;
}
