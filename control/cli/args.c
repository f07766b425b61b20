/* SPDX-License-Identifier: Apache-2.0 */
/* Checks of arguments: see args.h. */

#include "args.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moat/ctl.h"
#include "util.h"
#include "openvswitch/uuid.h"
#include "uuid.h"

static char *check_chars(const char *s, const char *more, size_t max)
{
    size_t n = strlen(s);

    if (!n)
        return xstrdup("is empty");
    if (n > max)
        return xasprintf("is longer than %zu characters", max);
    if (!isascii((unsigned char)*s) || !(isalnum((unsigned char)*s) || *s == '_'))
        return xstrdup("must start with a letter, a digit or \"_\"");
    for (const char *p = s; *p; p++)
        if (!isascii((unsigned char)*p) || (!isalnum((unsigned char)*p) && !strchr(more, *p)))
            return xasprintf("may have letters, digits and \"%s\" only", more);
    return NULL;
}

char *arg_name(const char *s)
{
    return check_chars(s, "._-", MOAT_ID_MAX - 1);
}

char *arg_vnic_id(const char *s)
{
    return check_chars(s, "._-:", MOAT_ID_MAX - 1);
}

char *arg_label(const char *s)
{
    return check_chars(s, "._-/", MOAT_ID_MAX - 1);
}

char *arg_value(const char *s)
{
    if (strlen(s) > 255)
        return xstrdup("is longer than 255 characters");
    for (; *s; s++)
        if (*s < 0x20 || *s > 0x7e)
            return xstrdup("may have printable ASCII characters only");
    return NULL;
}

char *arg_uuid(const char *s, char **canonical)
{
    struct uuid u;

    if (!uuid_from_string(&u, s))
        return xstrdup("is no UUID");
    *canonical = xasprintf(UUID_FMT, UUID_ARGS(&u));
    return NULL;
}

char *arg_mac(const char *s, char **canonical)
{
    unsigned b[6];
    int n = 0;

    if (sscanf(s, "%2x:%2x:%2x:%2x:%2x:%2x%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &n) != 6 ||
        s[n] || strlen(s) != 17 || strspn(s, "0123456789abcdefABCDEF:") != 17)
        return xstrdup("is no MAC address like 52:54:00:12:34:56");
    if (b[0] & 1)
        return xstrdup("is a group address, not one of a vNIC");
    if (!(b[0] | b[1] | b[2] | b[3] | b[4] | b[5]))
        return xstrdup("is all zero");
    *canonical = xasprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5]);
    return NULL;
}

static char *print_address(const struct arg_prefix *p)
{
    char buf[INET6_ADDRSTRLEN];

    inet_ntop(p->family == 6 ? AF_INET6 : AF_INET, p->addr, buf, sizeof buf);
    return xstrdup(buf);
}

static unsigned full_length(unsigned family)
{
    return family == 6 ? 128 : 32;
}

static bool bit_is_set(const uint8_t *addr, unsigned i)
{
    return addr[i / 8] >> (7 - i % 8) & 1;
}

bool prefix_parse(const char *s, struct arg_prefix *p)
{
    const char *slash = strchr(s, '/');
    char addr[INET6_ADDRSTRLEN];
    size_t n = slash ? (size_t)(slash - s) : strlen(s);

    memset(p, 0, sizeof *p);
    if (n >= sizeof addr)
        return false;
    memcpy(addr, s, n);
    addr[n] = '\0';
    if (inet_pton(AF_INET, addr, p->addr) == 1)
        p->family = 4;
    else if (inet_pton(AF_INET6, addr, p->addr) == 1)
        p->family = 6;
    else
        return false;
    p->plen = full_length(p->family);
    if (slash) {
        size_t digits = strspn(slash + 1, "0123456789");

        if (!digits || digits > 3 || slash[1 + digits] || atoi(slash + 1) > p->plen)
            return false;
        p->plen = atoi(slash + 1);
    }
    return true;
}

bool prefix_contains(const struct arg_prefix *p, unsigned family, const uint8_t addr[16])
{
    if (p->family != family)
        return false;
    for (unsigned i = 0; i < p->plen; i++)
        if (bit_is_set(p->addr, i) != bit_is_set(addr, i))
            return false;
    return true;
}

char *arg_address(const char *s, char **canonical)
{
    static const uint8_t zero[16];
    struct arg_prefix p;

    if (strchr(s, '/') || !prefix_parse(s, &p))
        return xstrdup("is no IPv4 or IPv6 address");
    if (!memcmp(p.addr, zero, 16))
        return xstrdup("is the unspecified address");
    if (p.family == 4 ? p.addr[0] >= 224 : p.addr[0] == 0xff)
        return xstrdup("is no address of one station");
    *canonical = print_address(&p);
    return NULL;
}

char *arg_prefix(const char *s, char **canonical)
{
    struct arg_prefix p, net;
    char *addr;

    if (!prefix_parse(s, &p))
        return xstrdup("is no IPv4 or IPv6 prefix like 10.0.0.0/24");
    net = p;
    for (unsigned i = p.plen; i < full_length(p.family); i++)
        net.addr[i / 8] &= (uint8_t) ~(0x80 >> i % 8);
    addr = print_address(&net);
    if (memcmp(&net, &p, sizeof net)) {
        char *error = xasprintf("has bits behind its length; is %s/%u meant?", addr, p.plen);

        free(addr);
        return error;
    }
    *canonical = p.plen == full_length(p.family) ? xstrdup(addr) : xasprintf("%s/%u", addr, p.plen);
    free(addr);
    return NULL;
}

bool arg_split(const char *s, size_t *key_len, const char **value)
{
    const char *eq = strchr(s, '=');

    if (!eq || eq == s)
        return false;
    *key_len = (size_t)(eq - s);
    *value = eq + 1;
    return true;
}
