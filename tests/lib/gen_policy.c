/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/gen_policy.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t moat_gen_next(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

unsigned moat_gen_below(uint64_t *state, unsigned n)
{
    return (unsigned)((moat_gen_next(state) >> 32) * n >> 32);
}

uint64_t moat_gen_seed(uint64_t otherwise)
{
    const char *env = getenv("MOAT_SEED");
    uint64_t seed = env && *env ? strtoull(env, NULL, 0) : otherwise;
    fprintf(stderr, "MOAT_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

static unsigned below(struct moat_gen *g, unsigned n)
{
    return moat_gen_below(&g->state, n);
}

static bool one_in(struct moat_gen *g, unsigned n)
{
    return below(g, n) == 0;
}

/* --- Addresses ------------------------------------------------------------------------ */

static const char *const bases4[] = {
    "10.0.0.0",  "10.0.0.0",        "10.0.0.0",        "10.0.1.0",   "192.168.7.0", "0.0.0.0",
    "224.0.0.0", "169.254.169.254", "255.255.255.240", "10.0.0.240", "127.0.0.1",   "8.8.8.8"};
static const char *const bases6[] = {"2001:db8::",
                                     "2001:db8::",
                                     "2001:db8::",
                                     "2001:db8:0:1::",
                                     "fe80::",
                                     "ff02::",
                                     "::",
                                     "2600::",
                                     "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0"};
#define N(A) (sizeof(A) / sizeof *(A))

/* One near a place that matters. */
static struct moat_addr some_addr(struct moat_gen *g, bool v6)
{
    struct moat_addr a = {.family = v6 ? 6 : 4, .plen = v6 ? 128 : 32};
    inet_pton(v6 ? AF_INET6 : AF_INET,
              v6 ? bases6[below(g, N(bases6))] : bases4[below(g, N(bases4))], a.addr);
    a.addr[v6 ? 15 : 3] += (uint8_t)below(g, 18);
    return a;
}

static void remember(struct moat_gen *g, const struct moat_addr *a)
{
    if (g->n_addrs < MOAT_GEN_POOL)
        g->addrs[g->n_addrs++] = *a;
}

static void step_addr(struct moat_addr *a, int by)
{
    unsigned n = a->family == 6 ? 16 : 4;
    for (unsigned i = n; i-- > 0;) {
        a->addr[i] = (uint8_t)(a->addr[i] + by);
        if (a->addr[i] != (by > 0 ? 0 : 0xff))
            break;
    }
}

static void mask(struct moat_addr *a, unsigned plen)
{
    a->plen = (uint8_t)plen;
    for (unsigned bit = plen; bit < (a->family == 6 ? 128u : 32u); bit++)
        a->addr[bit / 8] &= (uint8_t) ~(0x80 >> bit % 8);
}

static void remember_bounds(struct moat_gen *g, struct moat_addr lo, struct moat_addr hi)
{
    lo.plen = hi.plen = lo.family == 6 ? 128 : 32;
    remember(g, &lo);
    remember(g, &hi);
    step_addr(&lo, -1);
    step_addr(&hi, 1);
    remember(g, &lo);
    remember(g, &hi);
}

static void remember_prefix(struct moat_gen *g, const struct moat_addr *p)
{
    struct moat_addr hi = *p;
    for (unsigned bit = p->plen; bit < (p->family == 6 ? 128u : 32u); bit++)
        hi.addr[bit / 8] |= (uint8_t)(0x80 >> bit % 8);
    remember_bounds(g, *p, hi);
}

static struct moat_addr some_prefix(struct moat_gen *g, bool v6)
{
    static const unsigned short_by[] = {0, 0, 1, 2, 3, 4, 8, 16, 24, 31, 32};
    struct moat_addr a = some_addr(g, v6);
    unsigned bits = v6 ? 128 : 32;
    mask(&a, one_in(g, 20) ? 0 : bits - short_by[below(g, N(short_by))]);
    return a;
}

/* --- Inventory --------------------------------------------------------------------------- */

static const char *const vm_names[] = {"web1", "web2", "db", "old", "ops", "db"};
static const char *const roles[] = {"web", "db", "ops"};
static const char *const envs[] = {"prod", "test"};

static void vm_uuid(unsigned i, char out[40])
{
    snprintf(out, 40, "00000000-0000-4000-8000-%012u", i);
}

static unsigned hosts(struct moat_gen *g, struct moat_addr *v, unsigned max)
{
    unsigned n = below(g, max + 1);
    for (unsigned i = 0; i < n; i++) {
        v[i] = some_addr(g, one_in(g, 3));
        remember_prefix(g, &v[i]);
    }
    return n;
}

static void gen_network(struct moat_gen *g, unsigned i)
{
    struct moat_addr subnets[4], gateways[3], dhcp[3], metadata[3], routers[3];
    char name[16];
    struct moat_network_spec s = {.name = name,
                                  .subnets = subnets,
                                  .gateways = gateways,
                                  .dhcp_servers = dhcp,
                                  .metadata_servers = metadata,
                                  .routers = routers};
    snprintf(name, sizeof name, "net%u", i);
    if (!one_in(g, 6)) { /* the usual case: the same subnets in both networks */
        moat_addr_parse("10.0.0.0/24", &subnets[s.n_subnets++]);
        moat_addr_parse("2001:db8::/64", &subnets[s.n_subnets++]);
    }
    if (one_in(g, 3))
        subnets[s.n_subnets++] = some_prefix(g, one_in(g, 2));
    for (unsigned k = 0; k < s.n_subnets; k++)
        remember_prefix(g, &subnets[k]);
    s.n_gateways = hosts(g, gateways, 2);
    s.n_dhcp_servers = hosts(g, dhcp, 2);
    s.n_metadata_servers = hosts(g, metadata, 1);
    s.n_routers = hosts(g, routers, 2);
    moat_inventory_add_network(g->inv, &s);
}

static void gen_vm(struct moat_gen *g, unsigned i)
{
    char uuid[40];
    struct moat_label labels[2];
    struct moat_vm_spec s = {
        .uuid = uuid, .name = vm_names[below(g, N(vm_names))], .labels = labels};
    vm_uuid(i, uuid);
    if (!one_in(g, 3))
        labels[s.n_labels++] = (struct moat_label){"role", roles[below(g, N(roles))]};
    if (one_in(g, 2))
        labels[s.n_labels++] = (struct moat_label){"env", envs[below(g, N(envs))]};
    s.quarantine = g->quarantined[i] = one_in(g, 8);
    moat_inventory_add_vm(g->inv, &s);
}

static void gen_vnic(struct moat_gen *g, unsigned i, unsigned n_vms, unsigned n_networks)
{
    char id[16];
    struct moat_vnic_spec s = {.id = id,
                               .vm = below(g, n_vms),
                               .network = below(g, n_networks),
                               .mac = {0x52, 0x54, 0, 0, 0, (uint8_t)below(g, 6)},
                               .addrs = g->own[i].v};
    snprintf(id, sizeof id, "vnic%u", i);
    if (one_in(g, 10))
        memset(s.mac, 0, sizeof s.mac);
    s.n_addrs = below(g, 4);
    for (unsigned k = 0; k < s.n_addrs; k++) {
        bool v6 = one_in(g, 3);
        g->own[i].v[k] = one_in(g, 5) ? some_prefix(g, v6) : some_addr(g, v6);
        remember_prefix(g, &g->own[i].v[k]);
    }
    moat_inventory_add_vnic(g->inv, &s);
    g->own[i].n = (unsigned)s.n_addrs;
    struct moat_addr ll = {6,
                           128,
                           {0},
                           {0xfe, 0x80, [8] = s.mac[0] ^ 2, s.mac[1], s.mac[2], 0xff, 0xfe,
                            s.mac[3], s.mac[4], s.mac[5]}};
    g->own[i].v[g->own[i].n++] = ll;
    remember(g, &ll);
}

/* --- Policy -------------------------------------------------------------------------------- */

struct text {
    struct moat_gen *g;
    char *p;
    size_t n, cap;
    unsigned n_groups, n_services;
};

#define PUT(T, ...)                                                                                \
    do {                                                                                           \
        (T)->n += (size_t)snprintf((T)->p + (T)->n, (T)->cap - (T)->n, __VA_ARGS__);               \
        if ((T)->n + 4096 > (T)->cap)                                                              \
            (T)->p = realloc((T)->p, (T)->cap *= 2);                                               \
    } while (0)

static void put_range(struct text *t)
{
    struct moat_gen *g = t->g;
    bool v6 = one_in(g, 3);
    char buf[MOAT_ADDR_TEXT];
    if (one_in(g, 3)) {
        struct moat_addr a = some_addr(g, v6), b = some_addr(g, v6);
        if (one_in(g, 10))
            memset(a.addr, 0, sizeof a.addr);
        if (one_in(g, 10))
            memset(b.addr, 0xff, v6 ? 16 : 4);
        if (memcmp(a.addr, b.addr, 16) > 0) {
            struct moat_addr c = a;
            a = b;
            b = c;
        }
        remember_bounds(g, a, b);
        moat_addr_format(&a, buf);
        PUT(t, "%s-", buf);
        moat_addr_format(&b, buf);
        PUT(t, "%s", buf);
    } else {
        struct moat_addr a = some_prefix(g, v6);
        remember_prefix(g, &a);
        moat_addr_format(&a, buf);
        PUT(t, "%s", buf);
    }
}

static void put_term(struct text *t, bool vms_only)
{
    static const char *const builtins[] = {"any",     "any",    "vms",  "outside",  "unknown",
                                           "gateway", "router", "dhcp", "metadata", "multicast"};
    struct moat_gen *g = t->g;
    char uuid[40];
    switch (below(g, vms_only ? 5 : 10)) {
    case 0:
        PUT(t, "vms labelled role=%s", roles[below(g, N(roles))]);
        break;
    case 1:
        PUT(t, "vms labelled env=%s and role=%s", envs[below(g, N(envs))],
            roles[below(g, N(roles))]);
        break;
    case 2:
        PUT(t, "vm \"%s\"", vm_names[below(g, N(vm_names))]);
        break;
    case 3:
        vm_uuid(below(g, 6), uuid);
        PUT(t, "vm uuid %s", uuid);
        break;
    case 4:
        PUT(t, "%s", builtins[below(g, 3)]);
        break;
    case 5:
        PUT(t, "%s", builtins[below(g, N(builtins))]);
        break;
    case 6:
    case 7:
        PUT(t, "addresses ");
        put_range(t);
        while (one_in(g, 2)) {
            PUT(t, ", ");
            put_range(t);
        }
        break;
    default:
        if (t->n_groups)
            PUT(t, "%sg%u", one_in(g, 2) ? "group " : "", below(g, t->n_groups));
        else
            PUT(t, "any");
        break;
    }
}

static void put_expr(struct text *t, bool vms_only)
{
    struct moat_gen *g = t->g;
    put_term(t, vms_only);
    while (one_in(g, 3)) {
        PUT(t, ", ");
        put_term(t, vms_only);
    }
    if (one_in(g, 5)) {
        PUT(t, " except ");
        put_term(t, vms_only);
        if (one_in(g, 3)) {
            PUT(t, ", ");
            put_term(t, vms_only);
        }
    }
}

static unsigned some_port(struct moat_gen *g)
{
    static const uint16_t ports[] = {0,  1,   2,   22,  53,   67,   68,    80,    81,
                                     82, 443, 546, 547, 8000, 8099, 65533, 65534, 65535};
    unsigned p = ports[below(g, N(ports))];
    if (g->n_ports < MOAT_GEN_POOL - 2) {
        g->ports[g->n_ports++] = (uint16_t)p;
        g->ports[g->n_ports++] = (uint16_t)(p + 1);
        g->ports[g->n_ports++] = (uint16_t)(p - 1);
    }
    return p;
}

static void put_ports(struct text *t)
{
    unsigned a = some_port(t->g), b = some_port(t->g);
    if (one_in(t->g, 2) || a == b)
        PUT(t, "%u", a);
    else
        PUT(t, "%u-%u", a < b ? a : b, a < b ? b : a);
}

static void put_item(struct text *t)
{
    static const char *const words[] = {"icmp",
                                        "icmp6",
                                        "icmp echo-request",
                                        "icmp6 echo-request",
                                        "icmp fragmentation-needed",
                                        "icmp6 packet-too-big",
                                        "icmp 3 code 1",
                                        "icmp6 neighbor-solicitation",
                                        "icmp6 135 code 0",
                                        "icmp unreachable",
                                        "arp",
                                        "protocol 47",
                                        "protocol 0",
                                        "protocol 2",
                                        "protocol 6",
                                        "protocol 58",
                                        "protocol 255"};
    struct moat_gen *g = t->g;
    static const char *const protos[] = {"tcp", "tcp", "udp", "sctp"};
    unsigned kind = below(g, 8);
    if (kind == 0 && t->n_services) {
        PUT(t, "s%u", below(g, t->n_services));
    } else if (kind <= 2) {
        PUT(t, "%s", words[below(g, N(words))]);
    } else {
        PUT(t, "%s", protos[below(g, N(protos))]);
        if (!one_in(g, 6)) {
            PUT(t, " ");
            put_ports(t);
        }
        if (one_in(g, 5)) {
            PUT(t, " from port ");
            put_ports(t);
        }
    }
}

static void put_items(struct text *t)
{
    put_item(t);
    while (one_in(t->g, 2)) {
        PUT(t, ", ");
        put_item(t);
    }
}

static void put_rule(struct text *t, unsigned number)
{
    static const char *const actions[] = {
        "allow",      "allow log", "allow loose", "allow log loose", "drop", "drop log", "reject",
        "reject log", "next-tier", "log",         "allow",           "drop"};
    struct moat_gen *g = t->g;
    PUT(t, "    ");
    if (one_in(g, 4))
        PUT(t, "rule \"rule %u\" ", number);
    PUT(t, "%s from ", actions[below(g, N(actions))]);
    put_expr(t, false);
    PUT(t, " to ");
    put_expr(t, false);
    if (!one_in(g, 3)) {
        PUT(t, " service ");
        put_items(t);
    }
    PUT(t, "%s\n", one_in(g, 6) ? " # why" : "");
}

static void gen_text(struct moat_gen *g)
{
    static const char *const defaults[] = {"drop", "drop log", "allow", "reject", "reject log"};
    struct text t = {.g = g, .cap = 16384};
    unsigned rule = 0;

    t.p = malloc(t.cap);
    PUT(&t, "policy \"random\" version 1\n");
    unsigned groups = below(g, 6), services = below(g, 4),
             tiers = one_in(g, 12) ? 0 : 1 + below(g, 3);
    for (unsigned i = 0; i < groups; i++) {
        PUT(&t, "group g%u = ", i);
        put_expr(&t, false);
        PUT(&t, "\n");
        t.n_groups++;
    }
    for (unsigned i = 0; i < services; i++) {
        PUT(&t, "service s%u = ", i);
        put_items(&t);
        PUT(&t, "\n");
        t.n_services++;
    }
    for (unsigned i = 0; i < tiers; i++) {
        PUT(&t, "tier t%u {\n", i);
        for (unsigned n = 1 + below(g, 7); n > 0; n--)
            put_rule(&t, rule++);
        PUT(&t, "}\n");
    }
    if (one_in(g, 6)) {
        PUT(&t, "tier base {\n");
        for (unsigned n = below(g, 4); n > 0; n--)
            put_rule(&t, rule++);
        PUT(&t, "}\n");
    }
    if (!one_in(g, 4))
        PUT(&t, "default %s\n", defaults[below(g, N(defaults))]);
    if (one_in(g, 3)) {
        unsigned had = t.n_groups;
        t.n_groups = 0;
        PUT(&t, "settings for ");
        put_expr(&t, true);
        PUT(&t, " { tcp loose; hold %ums; timer %s %us }\n", below(g, 3000),
            moat_timer_name(below(g, MOAT_N_TIMERS)), 1 + below(g, 9000));
        t.n_groups = had;
    }
    g->text = t.p;
    g->policy = moat_policy_parse(t.p, t.n, "random", NULL);
}

void moat_gen_case(uint64_t seed, struct moat_gen *g)
{
    *g = (struct moat_gen){.seed = seed, .state = seed};
    g->inv = moat_inventory_create();
    unsigned n_networks = 1 + below(g, 3), n_vms = 1 + below(g, 5), n_vnics = 1 + below(g, 8);
    for (unsigned i = 0; i < n_networks; i++)
        gen_network(g, i);
    for (unsigned i = 0; i < n_vms; i++)
        gen_vm(g, i);
    for (unsigned i = 0; i < n_vnics; i++)
        gen_vnic(g, i, n_vms, n_networks);
    if (!one_in(g, 25))
        gen_text(g);
}

void moat_gen_destroy(struct moat_gen *g)
{
    moat_policy_destroy(g->policy);
    moat_inventory_destroy(g->inv);
    free(g->text);
    *g = (struct moat_gen){0};
}

/* --- Packets ---------------------------------------------------------------------------------- */

static void pick(struct moat_gen *g, bool v6, uint8_t out[16])
{
    memset(out, 0, 16);
    for (unsigned tries = 0; g->n_addrs && !one_in(g, 6) && tries < 8; tries++) {
        const struct moat_addr *a = &g->addrs[below(g, g->n_addrs)];
        if (a->family == (v6 ? 6 : 4)) {
            memcpy(out, a->addr, v6 ? 16 : 4);
            return;
        }
    }
    struct moat_addr a = some_addr(g, v6);
    memcpy(out, a.addr, v6 ? 16 : 4);
}

static uint16_t pick_port(struct moat_gen *g)
{
    if (g->n_ports && !one_in(g, 6))
        return g->ports[below(g, g->n_ports)];
    return one_in(g, 2) ? (uint16_t)some_port(g) : (uint16_t)moat_gen_next(&g->state);
}

void moat_gen_flow(struct moat_gen *g, unsigned vnic, struct moat_flow *f)
{
    static const uint8_t protos[] = {6, 6, 6, 17, 17, 132, 1, 58, 2, 47, 0, 255};
    static const uint8_t types4[] = {0, 3, 3, 8, 11, 255},
                         types6[] = {1, 2, 128, 130, 133, 134, 135, 136, 143};
    unsigned family = below(g, 10);

    *f = (struct moat_flow){.dir = (uint8_t)below(g, 2)};
    f->family = family == 0 ? MOAT_FAM_ARP : family < 6 ? MOAT_FAM_IP4 : MOAT_FAM_IP6;
    bool v6 = f->family == MOAT_FAM_IP6;
    pick(g, v6, f->remote);
    pick(g, v6, f->local);
    for (unsigned tries = 0; g->own[vnic].n && !one_in(g, 5) && tries < 4; tries++) {
        const struct moat_addr *a = &g->own[vnic].v[below(g, g->own[vnic].n)];
        if (a->family == (v6 ? 6 : 4)) {
            memcpy(f->local, a->addr, v6 ? 16 : 4);
            break;
        }
    }
    if (f->family == MOAT_FAM_ARP)
        return;
    f->proto = protos[below(g, N(protos))];
    if (f->proto == 1 && v6 && !one_in(g, 4))
        f->proto = 58;
    if (f->proto == 6 || f->proto == 17 || f->proto == 132) {
        f->sport = pick_port(g);
        f->dport = pick_port(g);
    } else if (f->proto == 1 || f->proto == 58) {
        f->dport = f->proto == 1 ? types4[below(g, N(types4))] : types6[below(g, N(types6))];
        f->sport = (uint16_t)(one_in(g, 2) ? 0 : below(g, 6));
    }
}
