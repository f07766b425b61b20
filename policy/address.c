/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* inet_pton and inet_ntop only convert; they look nothing up. */

static int address(const char *text, uint8_t out[16])
{
    memset(out, 0, 16);
    if (inet_pton(AF_INET, text, out) == 1)
        return MOAT_FAM_IP4;
    memset(out, 0, 16);
    if (inet_pton(AF_INET6, text, out) == 1)
        return MOAT_FAM_IP6;
    return 0;
}

static unsigned family_bits(unsigned family)
{
    return family == MOAT_FAM_IP4 ? 32 : 128;
}

bool moat_prefix_bounds(const uint8_t addr[16], unsigned bits, unsigned plen, uint8_t lo[16],
                        uint8_t hi[16])
{
    memset(lo, 0, 16);
    memset(hi, 0, 16);
    for (unsigned i = 0; i < bits / 8; i++) {
        unsigned kept = plen > i * 8 ? plen - i * 8 : 0;
        uint8_t mask = kept >= 8 ? 0xff : (uint8_t)(0xff00u >> kept);
        lo[i] = addr[i] & mask;
        hi[i] = lo[i] | (uint8_t)~mask;
    }
    return !memcmp(lo, addr, bits / 8);
}

/* A decimal number of up to three digits without sign or leading zero; -1: no. */
static int prefix_length(const char *s)
{
    int v = 0;
    size_t n = strlen(s);
    if (n == 0 || n > 3 || (n > 1 && *s == '0'))
        return -1;
    for (; *s; s++) {
        if (*s < '0' || *s > '9')
            return -1;
        v = v * 10 + (*s - '0');
    }
    return v;
}

static enum moat_range_error parse_span(char *first, char *last, struct ast_range *r)
{
    int a = address(first, r->lo), b = address(last, r->hi);
    if (!a || !b)
        return RANGE_BAD;
    if (a != b)
        return RANGE_MIXED;
    r->family = (uint8_t)a;
    r->plen = AST_SPAN;
    int order = memcmp(r->lo, r->hi, sizeof r->lo);
    if (order == 0)
        r->plen = (uint8_t)family_bits(r->family);
    return order > 0 ? RANGE_REVERSED : RANGE_OK;
}

enum moat_range_error moat_range_parse(const char *text, struct ast_range *r)
{
    char buf[MOAT_RANGE_TEXT];
    size_t len = strlen(text);

    memset(r, 0, sizeof *r);
    if (len >= sizeof buf)
        return RANGE_BAD;
    memcpy(buf, text, len + 1);

    char *dash = strchr(buf, '-');
    if (dash) {
        *dash = '\0';
        return parse_span(buf, dash + 1, r);
    }
    char *slash = strchr(buf, '/');
    if (slash)
        *slash = '\0';
    uint8_t addr[16];
    r->family = (uint8_t)address(buf, addr);
    if (!r->family)
        return RANGE_BAD;
    unsigned bits = family_bits(r->family);
    int plen = slash ? prefix_length(slash + 1) : (int)bits;
    if (plen < 0 || (unsigned)plen > bits)
        return RANGE_BAD_PLEN;
    r->plen = (uint8_t)plen;
    return moat_prefix_bounds(addr, bits, r->plen, r->lo, r->hi) ? RANGE_OK : RANGE_HOST_BITS;
}

static void put(unsigned family, const uint8_t addr[16], char *buf, size_t size)
{
    inet_ntop(family == MOAT_FAM_IP4 ? AF_INET : AF_INET6, addr, buf, (socklen_t)size);
}

void moat_range_format(const struct ast_range *r, char buf[MOAT_RANGE_TEXT])
{
    put(r->family, r->lo, buf, INET6_ADDRSTRLEN);
    size_t n = strlen(buf);
    if (r->plen == AST_SPAN) {
        buf[n++] = '-';
        put(r->family, r->hi, buf + n, INET6_ADDRSTRLEN);
    } else if (r->plen != family_bits(r->family)) {
        snprintf(buf + n, MOAT_RANGE_TEXT - n, "/%u", r->plen);
    }
}

int moat_addr_parse(const char *text, struct moat_addr *a)
{
    struct ast_range r;
    if (moat_range_parse(text, &r) != RANGE_OK || r.plen == AST_SPAN || strchr(text, '-'))
        return -EINVAL;
    *a = (struct moat_addr){.family = r.family, .plen = r.plen};
    memcpy(a->addr, r.lo, sizeof a->addr);
    return 0;
}

void moat_addr_format(const struct moat_addr *a, char buf[MOAT_ADDR_TEXT])
{
    put(a->family, a->addr, buf, INET6_ADDRSTRLEN);
    if (a->plen != family_bits(a->family)) {
        size_t n = strlen(buf);
        snprintf(buf + n, MOAT_ADDR_TEXT - n, "/%u", a->plen);
    }
}
