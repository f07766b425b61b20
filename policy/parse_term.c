/* SPDX-License-Identifier: Apache-2.0 */

/* The lists within statements: who (groups) and what (services). */

#include <stdio.h>
#include <string.h>

#include "policy/address.h"
#include "policy/parse.h"

#define WHO_HINT                                                                                   \
    "a group, any, vm \"NAME\", vms labelled KEY=VALUE, addresses PREFIX, outside, gateway, ..."

/* An address is told from a name by its looks: names start with a letter and
 * have no colon. */
static bool looks_like_address(const struct lex_token *t)
{
    return t->kind == LEX_WORD &&
           ((t->text[0] >= '0' && t->text[0] <= '9') || memchr(t->text, ':', t->len));
}

static bool parse_label_word(struct parser *p, const char *what, const char **out)
{
    if (p->tok.kind == LEX_STRING) {
        *out = moat_parse_string(p, MOAT_POLICY_MAX_STRING, what);
        return *out != NULL;
    }
    if (p->tok.kind != LEX_WORD)
        return moat_parse_unexpected(p, what, "write: vms labelled role=web and env=prod");
    if (p->tok.len >= MOAT_POLICY_MAX_STRING)
        return moat_parse_fail(p, p->tok.pos, NULL, "%s is too long", what);
    *out = moat_parse_dup(p);
    moat_parse_advance(p);
    return *out != NULL;
}

static bool parse_labels(struct parser *p, struct ast_term *t)
{
    t->kind = TERM_LABELS;
    for (;;) {
        struct ast_label l;
        if (!parse_label_word(p, "the key of a label", &l.key))
            return false;
        if (p->tok.kind != LEX_EQUALS)
            return moat_parse_unexpected(p, "`=`", "write: vms labelled role=web and env=prod");
        moat_parse_advance(p);
        if (!parse_label_word(p, "the value of a label", &l.value))
            return false;
        if (t->n >= MOAT_POLICY_MAX_LIST)
            return moat_parse_fail(p, t->pos, NULL, "more than %u labels", MOAT_POLICY_MAX_LIST);
        struct ast_label *v = moat_arena_grow(p->arena, t->labels, t->n, &t->cap, sizeof *v);
        if (!v)
            return false;
        t->labels = v;
        v[t->n++] = l;
        if (!moat_parse_is(p, "and"))
            return true;
        moat_parse_advance(p);
        moat_parse_skip_newline(p);
    }
}

static bool parse_range(struct parser *p, struct ast_range *r)
{
    char meant[MOAT_RANGE_TEXT];
    const char *text = moat_parse_dup(p);
    if (!text)
        return false;
    switch (moat_range_parse(text, r)) {
    case RANGE_OK:
        moat_parse_advance(p);
        return true;
    case RANGE_BAD_PLEN:
        return moat_parse_fail(p, p->tok.pos, "0 to 32 for IPv4, 0 to 128 for IPv6",
                               "bad prefix length in `%.60s`", text);
    case RANGE_HOST_BITS: {
        char hint[MOAT_RANGE_TEXT + 32];
        moat_range_format(r, meant);
        snprintf(hint, sizeof hint, "the prefix is %s", meant);
        return moat_parse_fail(p, p->tok.pos, hint, "`%.60s` has bits set beyond its prefix", text);
    }
    case RANGE_MIXED:
        return moat_parse_fail(p, p->tok.pos, NULL, "`%.100s` goes from one family to the other",
                               text);
    case RANGE_REVERSED:
        return moat_parse_fail(p, p->tok.pos, "the lower address comes first",
                               "`%.100s` goes backwards", text);
    case RANGE_BAD:
        break;
    }
    return moat_parse_fail(p, p->tok.pos, "write 10.0.0.0/8, 2001:db8::1 or 10.0.0.1-10.0.0.9",
                           "`%.100s` is no address", text);
}

/* A comma between addresses is one between terms, too: the word behind it tells.
 * *more: it was the latter, and is read. */
static bool parse_addresses(struct parser *p, struct ast_term *t, bool *more)
{
    t->kind = TERM_ADDRESSES;
    if (p->tok.kind != LEX_WORD)
        return moat_parse_unexpected(p, "an address",
                                     "write 10.0.0.0/8, 2001:db8::1 or 10.0.0.1-10.0.0.9");
    do {
        struct ast_range r;
        if (!parse_range(p, &r))
            return false;
        if (t->n >= MOAT_POLICY_MAX_LIST)
            return moat_parse_fail(p, t->pos, "make two groups of them", "more than %u addresses",
                                   MOAT_POLICY_MAX_LIST);
        struct ast_range *v = moat_arena_grow(p->arena, t->ranges, t->n, &t->cap, sizeof *v);
        if (!v)
            return false;
        t->ranges = v;
        v[t->n++] = r;
        *more = p->tok.kind == LEX_COMMA;
        if (*more) {
            moat_parse_advance(p);
            moat_parse_skip_newline(p);
        }
    } while (*more && looks_like_address(&p->tok));
    return true;
}

static bool parse_uuid(struct parser *p, struct ast_term *t)
{
    static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
    t->kind = TERM_VM_UUID;
    bool ok = p->tok.kind == LEX_WORD && p->tok.len == sizeof shape - 1;
    char *s = ok ? moat_parse_dup(p) : NULL;
    if (ok && !s)
        return false;
    for (size_t i = 0; ok && shape[i]; i++) {
        if (s[i] >= 'A' && s[i] <= 'F')
            s[i] = (char)(s[i] - 'A' + 'a');
        if (shape[i] == '-')
            ok = s[i] == '-';
        else
            ok = (s[i] >= '0' && s[i] <= '9') || (s[i] >= 'a' && s[i] <= 'f');
    }
    if (!ok)
        return moat_parse_unexpected(p, "a UUID",
                                     "it looks like 6c9f0c1e-2b7a-4c55-9d0e-0123456789ab");
    t->text = s;
    moat_parse_advance(p);
    return true;
}

static bool parse_vm(struct parser *p, struct ast_term *t)
{
    moat_parse_advance(p);
    if (moat_parse_is(p, "uuid")) {
        moat_parse_advance(p);
        return parse_uuid(p, t);
    }
    if (p->tok.kind != LEX_STRING)
        return moat_parse_unexpected(p, "the name of a VM", "write vm \"NAME\" or vm uuid UUID");
    t->kind = TERM_VM_NAME;
    t->text = moat_parse_string(p, MOAT_POLICY_MAX_STRING, "the name of a VM");
    return t->text != NULL;
}

static bool parse_term(struct parser *p, struct ast_term *t, bool *more)
{
    t->pos = p->tok.pos;
    if (p->tok.kind == LEX_STRING)
        return moat_parse_unexpected(p, "a group", "for the VM of that name, write vm \"NAME\"");
    if (p->tok.kind != LEX_WORD)
        return moat_parse_unexpected(p, "a group", WHO_HINT);
    if (looks_like_address(&p->tok))
        return moat_parse_unexpected(p, "a group", "write `addresses` before an address");
    if (moat_parse_is(p, "labelled"))
        return moat_parse_unexpected(p, "a group", "write: vms labelled KEY=VALUE");
    if (moat_parse_is(p, "vm"))
        return parse_vm(p, t);
    if (moat_parse_is(p, "addresses")) {
        moat_parse_advance(p);
        return parse_addresses(p, t, more);
    }
    for (enum ast_term_kind k = 0; k < N_BUILTIN_TERMS; k++) {
        if (moat_parse_is(p, moat_ast_builtin_name(k))) {
            t->kind = k;
            moat_parse_advance(p);
            if (k == TERM_VMS && moat_parse_is(p, "labelled")) {
                moat_parse_advance(p);
                return parse_labels(p, t);
            }
            if (k == TERM_VMS && p->tok.kind == LEX_WORD && p->tok.text[0] == 'l')
                return moat_parse_unexpected(p, "`labelled`", "write: vms labelled KEY=VALUE");
            return true;
        }
    }
    if (moat_parse_is(p, "group"))
        moat_parse_advance(p);
    else if (moat_parse_is(p, "from") || moat_parse_is(p, "to") || moat_parse_is(p, "service") ||
             moat_parse_is(p, "except"))
        return moat_parse_unexpected(p, "a group", WHO_HINT);
    t->kind = TERM_GROUP;
    t->pos = p->tok.pos;
    t->text = moat_parse_name(p, "the name of a group");
    return t->text != NULL;
}

static bool parse_terms(struct parser *p, struct ast_terms *ts)
{
    bool more;
    do {
        struct ast_term t = {0};
        more = false;
        if (!parse_term(p, &t, &more))
            return false;
        if (ts->n >= MOAT_POLICY_MAX_LIST)
            return moat_parse_fail(p, t.pos, "make two groups of it",
                                   "more than %u items in a list", MOAT_POLICY_MAX_LIST);
        struct ast_term *v = moat_arena_grow(p->arena, ts->v, ts->n, &ts->cap, sizeof *v);
        if (!v)
            return false;
        ts->v = v;
        v[ts->n++] = t;
        if (!more && p->tok.kind == LEX_COMMA) {
            more = true;
            moat_parse_advance(p);
            moat_parse_skip_newline(p);
        }
    } while (more);
    return true;
}

bool moat_parse_expr(struct parser *p, struct ast_expr *e)
{
    if (!parse_terms(p, &e->with))
        return false;
    if (!moat_parse_is(p, "except"))
        return true;
    moat_parse_advance(p);
    moat_parse_skip_newline(p);
    return parse_terms(p, &e->except);
}

/* --- Services ---------------------------------------------------------------------- */

static bool parse_ports(struct parser *p, uint16_t *lo, uint16_t *hi)
{
    struct lex_token first = p->tok, last = p->tok;
    uint32_t a, b;
    const char *dash = p->tok.kind == LEX_WORD ? memchr(p->tok.text, '-', p->tok.len) : NULL;
    if (dash) {
        first.len = (uint32_t)(dash - first.text);
        last.text = dash + 1;
        last.len = p->tok.len - first.len - 1;
    }
    if (!moat_parse_number(&first, 65535, &a) || !moat_parse_number(&last, 65535, &b))
        return moat_parse_unexpected(p, "a port",
                                     "a number from 0 to 65535, or a range such as 8000-8099");
    if (a > b)
        return moat_parse_fail(p, p->tok.pos, "the lower port comes first", "`%.*s` goes backwards",
                               (int)p->tok.len, p->tok.text);
    *lo = (uint16_t)a;
    *hi = (uint16_t)b;
    moat_parse_advance(p);
    return true;
}

static bool parse_port_item(struct parser *p, struct ast_item *it)
{
    it->kind = ITEM_PORTS;
    if (p->tok.kind == LEX_WORD && !moat_parse_is(p, "from")) {
        it->has_dport = true;
        if (!parse_ports(p, &it->dport_lo, &it->dport_hi))
            return false;
    }
    if (moat_parse_is(p, "from")) {
        moat_parse_advance(p);
        if (!moat_parse_is(p, "port"))
            return moat_parse_unexpected(p, "`port`", "write: udp 67 from port 68");
        moat_parse_advance(p);
        it->has_sport = true;
        return parse_ports(p, &it->sport_lo, &it->sport_hi);
    }
    return true;
}

static void set_dport(struct ast_item *it, uint32_t v)
{
    it->has_dport = true;
    it->dport_lo = it->dport_hi = (uint16_t)v;
}

static void set_sport(struct ast_item *it, uint32_t v)
{
    it->has_sport = true;
    it->sport_lo = it->sport_hi = (uint16_t)v;
}

static bool parse_icmp_item(struct parser *p, struct ast_item *it, bool v6)
{
    uint32_t v;

    it->kind = v6 ? ITEM_ICMP6 : ITEM_ICMP;
    it->proto = v6 ? 58 : 1;
    if (p->tok.kind != LEX_WORD)
        return true;
    if (moat_parse_number(&p->tok, 255, &v)) {
        set_dport(it, v);
    } else {
        const struct ast_icmp_name *n = moat_ast_icmp_names, *end = n + moat_ast_n_icmp_names;
        while (n < end && !(n->v6 == v6 && moat_parse_is(p, n->name)))
            n++;
        if (n == end)
            return moat_parse_unexpected(
                p, v6 ? "a type of ICMPv6" : "a type of ICMP",
                v6 ? "a number from 0 to 255, or echo-request, packet-too-big, unreachable, "
                     "neighbor-solicitation, ..."
                   : "a number from 0 to 255, or echo-request, fragmentation-needed, "
                     "unreachable, time-exceeded, ...");
        set_dport(it, n->type);
        if (n->code >= 0)
            set_sport(it, (uint32_t)n->code);
    }
    moat_parse_advance(p);
    if (moat_parse_is(p, "code")) {
        if (it->has_sport)
            return moat_parse_fail(p, p->tok.pos, NULL, "this type has its code already");
        moat_parse_advance(p);
        if (!moat_parse_number(&p->tok, 255, &v))
            return moat_parse_unexpected(p, "a code from 0 to 255", NULL);
        set_sport(it, v);
        moat_parse_advance(p);
    }
    return true;
}

static bool parse_item(struct parser *p, struct ast_item *it)
{
    static const struct {
        const char *word;
        uint8_t proto;
    } with_ports[] = {{"tcp", 6}, {"udp", 17}, {"sctp", 132}};
    uint32_t v;

    *it = (struct ast_item){.pos = p->tok.pos, .dport_hi = UINT16_MAX, .sport_hi = UINT16_MAX};
    for (size_t i = 0; i < sizeof with_ports / sizeof *with_ports; i++) {
        if (moat_parse_is(p, with_ports[i].word)) {
            it->proto = with_ports[i].proto;
            moat_parse_advance(p);
            return parse_port_item(p, it);
        }
    }
    if (moat_parse_is(p, "icmp") || moat_parse_is(p, "icmp6")) {
        bool v6 = moat_parse_is(p, "icmp6");
        moat_parse_advance(p);
        return parse_icmp_item(p, it, v6);
    }
    if (moat_parse_is(p, "protocol")) {
        it->kind = ITEM_PROTO;
        moat_parse_advance(p);
        if (!moat_parse_number(&p->tok, 255, &v))
            return moat_parse_unexpected(p, "a protocol number from 0 to 255", NULL);
        it->proto = (uint8_t)v;
        moat_parse_advance(p);
        return true;
    }
    if (moat_parse_is(p, "arp")) {
        it->kind = ITEM_ARP;
        moat_parse_advance(p);
        return true;
    }
    if (p->tok.kind == LEX_WORD && p->tok.text[0] >= '0' && p->tok.text[0] <= '9')
        return moat_parse_unexpected(p, "a service",
                                     "repeat the protocol before each port: tcp 80, tcp 443");
    if (p->tok.kind != LEX_WORD)
        return moat_parse_unexpected(p, "a service",
                                     "a service by name, tcp PORT, udp PORT, sctp PORT, icmp TYPE, "
                                     "icmp6 TYPE, protocol NUMBER or arp");
    it->kind = ITEM_SERVICE;
    it->name = moat_parse_name(p, "the name of a service");
    return it->name != NULL;
}

bool moat_parse_items(struct parser *p, struct ast_items *items)
{
    for (;;) {
        struct ast_item it;
        if (!parse_item(p, &it))
            return false;
        if (items->n >= MOAT_POLICY_MAX_LIST)
            return moat_parse_fail(p, it.pos, "make two services of it",
                                   "more than %u items in a list", MOAT_POLICY_MAX_LIST);
        struct ast_item *v = moat_arena_grow(p->arena, items->v, items->n, &items->cap, sizeof *v);
        if (!v)
            return false;
        items->v = v;
        v[items->n++] = it;
        if (p->tok.kind != LEX_COMMA)
            return true;
        moat_parse_advance(p);
        moat_parse_skip_newline(p);
    }
}
