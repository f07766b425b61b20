/* SPDX-License-Identifier: Apache-2.0 */

/* Runs all tests of policy/, and holds what they share. */

#include "test_policy.h"

struct moat_policy *must_parse(const char *text)
{
    struct moat_diags *ds = moat_diags_create();
    struct moat_policy *p = moat_policy_parse(text, strlen(text), "t", ds);
    char *why = moat_diags_text(ds);
    ck_assert_msg(p != NULL, "%s in:\n%s", why, text);
    free(why);
    moat_diags_destroy(ds);
    return p;
}

char *diagnosis(const char *text)
{
    struct moat_diags *ds = moat_diags_create();
    moat_policy_destroy(moat_policy_parse(text, strlen(text), "t", ds));
    char *why = moat_diags_text(ds);
    moat_diags_destroy(ds);
    return why;
}

size_t addr_list(const char *text, struct moat_addr *out, size_t max)
{
    size_t n = 0;
    while (*text) {
        char one[64];
        size_t len = strcspn(text, ",");
        ck_assert(n < max && len < sizeof one);
        memcpy(one, text, len);
        one[len] = '\0';
        ck_assert_int_eq(moat_addr_parse(one, &out[n++]), 0);
        text += len + (text[len] == ',');
    }
    return n;
}

struct moat_inventory *shop_quarantining(int who)
{
    static const struct {
        const char *name, *label[4], *network, *addrs;
    } vms[] = {
        {"web1", {"role", "web", "env", "prod"}, "blue", "10.0.0.10,2001:db8::10"},
        {"web2", {"role", "web", "env", "test"}, "blue", "10.0.0.11"},
        {"db", {"role", "db", "env", "prod"}, "blue", "10.0.0.20,10.0.0.100"},
        {"lone", {0}, "blue", "10.0.0.30"},
        {"red", {"role", "red", "env", "prod"}, "red", "10.0.0.10"},
    };
    struct moat_inventory *inv = moat_inventory_create();
    struct moat_addr a[5][4];
    ck_assert_int_eq(
        moat_inventory_add_network(inv,
                                   &(struct moat_network_spec){
                                       .name = "blue",
                                       .subnets = a[0],
                                       .n_subnets = addr_list("10.0.0.0/24,2001:db8::/64", a[0], 4),
                                       .gateways = a[1],
                                       .n_gateways = addr_list("10.0.0.1", a[1], 4),
                                       .dhcp_servers = a[2],
                                       .n_dhcp_servers = addr_list("10.0.0.2", a[2], 4),
                                       .metadata_servers = a[3],
                                       .n_metadata_servers = addr_list("169.254.169.254", a[3], 4),
                                       .routers = a[4],
                                       .n_routers = addr_list("fe80::1", a[4], 4),
                                   }),
        0);
    ck_assert_int_eq(moat_inventory_add_network(inv, &(struct moat_network_spec){.name = "red"}),
                     1);
    for (unsigned i = 0; i < 5; i++) {
        char uuid[40];
        struct moat_label labels[2] = {{vms[i].label[0], vms[i].label[1]},
                                       {vms[i].label[2], vms[i].label[3]}};
        snprintf(uuid, sizeof uuid, "6c9f0c1e-0000-4000-8000-00000000000%u", i);
        ck_assert_int_eq(
            moat_inventory_add_vm(inv, &(struct moat_vm_spec){uuid, vms[i].name, labels,
                                                              vms[i].label[0] ? 2 : 0,
                                                              .quarantine = (int)i == who}),
            (int)i);
        ck_assert_int_eq(
            moat_inventory_add_vnic(
                inv,
                &(struct moat_vnic_spec){
                    .id = vms[i].name,
                    .vm = i,
                    .network = (unsigned)moat_inventory_find_network(inv, vms[i].network),
                    .mac = {0x52, 0x54, 0, 0, 0, (uint8_t)(i + 1)},
                    .addrs = a[0],
                    .n_addrs = addr_list(vms[i].addrs, a[0], 4),
                }),
            (int)i);
    }
    return inv;
}

struct moat_inventory *shop(void)
{
    return shop_quarantining(-1);
}

struct moat_flow flow(const char *dir, const char *local, const char *remote, unsigned proto,
                      unsigned sport, unsigned dport)
{
    struct moat_addr l, r;
    ck_assert_int_eq(moat_addr_parse(local, &l), 0);
    ck_assert_int_eq(moat_addr_parse(remote, &r), 0);
    ck_assert_int_eq(l.family, r.family);
    struct moat_flow f = {
        .dir = !strcmp(dir, "to") ? MOAT_TO_VM : MOAT_FROM_VM,
        .family = !strcmp(dir, "arp") ? MOAT_FAM_ARP : l.family,
        .proto = (uint8_t)proto,
        .sport = (uint16_t)sport,
        .dport = (uint16_t)dport,
    };
    memcpy(f.local, l.addr, sizeof f.local);
    memcpy(f.remote, r.addr, sizeof f.remote);
    return f;
}

int main(void)
{
    Suite *s = suite_create("policy");
    suite_add_tcase(s, lex_tests());
    suite_add_tcase(s, parse_tests());
    suite_add_tcase(s, inventory_tests());
    suite_add_tcase(s, range_tests());
    suite_add_tcase(s, settings_tests());
    suite_add_tcase(s, eval_tests());
    suite_add_tcase(s, emit_tests());
    suite_add_tcase(s, hostile_tests());
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
