/* SPDX-License-Identifier: Apache-2.0 */
/* Packets and sessions in words: see packet.h. */

#include "packet.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moat/session.h"
#include "openvswitch/dynamic-string.h"
#include "text.h"
#include "util.h"

enum { PROTO_ICMP = 1, PROTO_TCP = 6, PROTO_UDP = 17, PROTO_ICMP6 = 58, PROTO_SCTP = 132 };

static const char *const tcp_states[] = {"none",    "syn-sent",  "established",
                                         "closing", "fin-acked", "reset"};
static const char *const other_states[] = {"silent", "single", "multiple"};

static const struct {
    unsigned bit;
    const char *name;
} session_flags[] = {
    {MOAT_SES_F_REPLIED, "replied"},
    {MOAT_SES_F_LOOSE, "loose"},
    {MOAT_SES_F_IMPORTED, "imported"},
    {MOAT_SES_F_FAIL_OPEN, "fail-open"},
};

/* --- packets ------------------------------------------------------------------ */

const char *packet_direction(unsigned dir)
{
    return dir == MOAT_FROM_VM ? "from-vm" : "to-vm";
}

const char *packet_verdict(int64_t verdict)
{
    static const char *const names[] = {"drop", "allow", "reject", "next-tier", "log"};

    return verdict >= 0 && verdict < (int64_t)ARRAY_SIZE(names) ? names[verdict] : "?";
}

/* As people who read packet traces know them: S, S., ., P., F., R. */
static void put_tcp_flags(struct ds *s, unsigned flags)
{
    static const struct {
        unsigned bit;
        char letter;
    } known[] = {{0x02, 'S'}, {0x01, 'F'}, {0x04, 'R'}, {0x08, 'P'}, {0x20, 'U'}, {0x10, '.'}};

    ds_put_char(s, ' ');
    for (size_t i = 0; i < ARRAY_SIZE(known); i++)
        if (flags & known[i].bit)
            ds_put_char(s, known[i].letter);
    if (!(flags & 0x3f))
        ds_put_cstr(s, "none");
}

char *packet_text(const struct moat_flow *f, unsigned tcp_flags)
{
    bool out = f->dir == MOAT_FROM_VM, is_arp = f->family == MOAT_FAM_ARP;
    bool has_ports = f->proto == PROTO_TCP || f->proto == PROTO_UDP || f->proto == PROTO_SCTP;
    unsigned family = f->family == MOAT_FAM_IP6 ? 6 : 4;
    struct ds s = DS_EMPTY_INITIALIZER;
    char *proto, *src, *dst;

    if (!f->family)
        return xstrdup("(no address)");
    has_ports = has_ports && (f->sport || f->dport); /* later fragments have none */
    proto = is_arp ? xstrdup("arp") : text_proto(f->proto);
    src = text_address(family, out ? f->local : f->remote, has_ports ? f->sport : -1);
    dst = text_address(family, out ? f->remote : f->local, has_ports ? f->dport : -1);
    ds_put_format(&s, "%s %s -> %s", proto, src, dst);
    if (!is_arp && f->proto == PROTO_TCP && has_ports)
        put_tcp_flags(&s, tcp_flags);
    if (!is_arp && f->proto == (family == 6 ? PROTO_ICMP6 : PROTO_ICMP))
        ds_put_format(&s, " type %u code %u", f->dport, f->sport);
    free(proto);
    free(src);
    free(dst);
    return ds_steal_cstr(&s);
}

struct json *packet_flow_json(const struct moat_flow *f)
{
    struct json *j = json_object_create();
    unsigned family = f->family == MOAT_FAM_IP6 ? 6 : 4;

    json_object_put_string(j, "direction", packet_direction(f->dir));
    json_object_put_string(j, "family",
                           f->family == MOAT_FAM_ARP ? "arp"
                           : family == 6             ? "ip6"
                                                     : "ip4");
    json_object_put(j, "proto", json_integer_create(f->proto));
    json_object_put(j, "sport", json_integer_create(f->sport));
    json_object_put(j, "dport", json_integer_create(f->dport));
    json_object_put(j, "local", json_string_create_nocopy(text_address(family, f->local, -1)));
    json_object_put(j, "remote", json_string_create_nocopy(text_address(family, f->remote, -1)));
    return j;
}

/* --- sessions ----------------------------------------------------------------- */

const char *session_state(unsigned proto, unsigned state)
{
    if (proto == PROTO_TCP)
        return state < ARRAY_SIZE(tcp_states) ? tcp_states[state] : "?";
    return state < ARRAY_SIZE(other_states) ? other_states[state] : "?";
}

bool session_is_state(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(tcp_states); i++)
        if (!strcmp(name, tcp_states[i]))
            return true;
    for (size_t i = 0; i < ARRAY_SIZE(other_states); i++)
        if (!strcmp(name, other_states[i]))
            return true;
    return false;
}

char *session_states(unsigned proto, unsigned local, unsigned remote)
{
    const char *l = session_state(proto, local), *r = session_state(proto, remote);

    return strcmp(l, r) ? xasprintf("%s/%s", l, r) : xstrdup(l);
}

struct json *session_flags_json(unsigned flags, char **text)
{
    struct json *array = json_array_create_empty();
    struct ds s = DS_EMPTY_INITIALIZER;

    for (size_t i = 0; i < ARRAY_SIZE(session_flags); i++)
        if (flags & session_flags[i].bit) {
            json_array_add(array, json_string_create(session_flags[i].name));
            ds_put_format(&s, "%s%s", s.length ? "," : "", session_flags[i].name);
        }
    if (text)
        *text = ds_steal_cstr(&s);
    else
        ds_destroy(&s);
    return array;
}
