/* SPDX-License-Identifier: Apache-2.0 */
#include "test_policy.h"

#include <errno.h>

#define UUID "6c9f0c1e-0000-4000-8000-000000000000"

static const struct {
    const char *text;
    int err;
    const char *printed;
} addrs[] = {
    {"10.0.0.5", 0, "10.0.0.5"},
    {"10.0.0.5/32", 0, "10.0.0.5"},
    {"10.0.0.0/24", 0, "10.0.0.0/24"},
    {"0.0.0.0/0", 0, "0.0.0.0/0"},
    {"2001:DB8::1", 0, "2001:db8::1"},
    {"2001:db8::/33", 0, "2001:db8::/33"},
    {"10.0.0.5/24", -EINVAL, NULL},
    {"10.0.0.0/33", -EINVAL, NULL},
    {"10.0.0", -EINVAL, NULL},
    {"10.0.0.1-10.0.0.2", -EINVAL, NULL},
    {"10.0.0.1-10.0.0.1", -EINVAL, NULL},
    {"10.0.0.0/-1", -EINVAL, NULL},
    {"10.0.0.0/", -EINVAL, NULL},
    {"", -EINVAL, NULL},
    {"fe80::1%eth0", -EINVAL, NULL},
};

START_TEST(addresses)
{
    struct moat_addr a;
    char buf[MOAT_ADDR_TEXT];
    ck_assert_int_eq(moat_addr_parse(addrs[_i].text, &a), addrs[_i].err);
    if (addrs[_i].err)
        return;
    moat_addr_format(&a, buf);
    ck_assert_str_eq(buf, addrs[_i].printed);
}
END_TEST

START_TEST(refusals)
{
    struct moat_inventory *inv = shop();
    struct moat_addr prefix, odd = {4, 24, {0}, {10, 0, 0, 5}}, alien = {5, 32, {0}, {1}};
    struct moat_label label = {"key", ""};
    unsigned vms = moat_inventory_n_vms(inv), vnics = moat_inventory_n_vnics(inv);
    char longer[300];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = '\0';
    moat_addr_parse("10.0.0.0/24", &prefix);

#define NET(...) moat_inventory_add_network(inv, &(struct moat_network_spec){__VA_ARGS__})
    ck_assert_int_eq(NET(.name = "blue"), -EEXIST);
    ck_assert_int_eq(NET(.name = ""), -EINVAL);
    ck_assert_int_eq(NET(.name = longer), -EINVAL);
    ck_assert_int_eq(NET(.name = "a\nb"), -EINVAL);
    ck_assert_int_eq(NET(.name = "n", .subnets = &odd, .n_subnets = 1), -EINVAL);
    ck_assert_int_eq(NET(.name = "n", .subnets = &alien, .n_subnets = 1), -EINVAL);
    ck_assert_int_eq(NET(.name = "n", .gateways = &prefix, .n_gateways = 1), -EINVAL);
    ck_assert_int_eq(NET(.name = "n", .gateways = &prefix, .n_gateways = 1000), -E2BIG);
    ck_assert_int_eq(NET(.name = "n"), 2);

#define VM(...) moat_inventory_add_vm(inv, &(struct moat_vm_spec){__VA_ARGS__, .quarantine = false})
    ck_assert_int_eq(VM(UUID, "x", NULL, 0), -EEXIST);
    ck_assert_int_eq(VM("6C9F0C1E-0000-4000-8000-000000000000", "x", NULL, 0), -EEXIST);
    ck_assert_int_eq(VM("x", "x", NULL, 0), -EINVAL);
    ck_assert_int_eq(VM(UUID "0", "x", NULL, 0), -EINVAL);
    ck_assert_int_eq(VM("7c9f0c1e-0000-4000-8000-000000000000", "\xff", NULL, 0), -EINVAL);
    ck_assert_int_eq(VM("7c9f0c1e-0000-4000-8000-000000000000", "x", &label, 1), -EINVAL);
    ck_assert_uint_eq(moat_inventory_n_vms(inv), vms);

#define VNIC(...) moat_inventory_add_vnic(inv, &(struct moat_vnic_spec){__VA_ARGS__})
    ck_assert_int_eq(VNIC(.id = "web1"), -EEXIST);
    ck_assert_int_eq(VNIC(.id = "v", .vm = vms), -EINVAL);
    ck_assert_int_eq(VNIC(.id = "v", .network = 9), -EINVAL);
    ck_assert_int_eq(VNIC(.id = "v", .addrs = &odd, .n_addrs = 1), -EINVAL);
    longer[MOAT_ID_MAX] = '\0';
    ck_assert_int_eq(VNIC(.id = longer), -EINVAL);
    longer[MOAT_ID_MAX - 1] = '\0';
    ck_assert_uint_eq(moat_inventory_n_vnics(inv), vnics);
    ck_assert_int_eq(VNIC(.id = longer), (int)vnics);

    ck_assert_int_eq(moat_inventory_find_vnic(inv, longer), (int)vnics);
    ck_assert_int_eq(moat_inventory_find_vnic(inv, "nobody"), -ENOENT);
    ck_assert_int_eq(moat_inventory_find_vm(inv, UUID), 0);
    ck_assert_int_eq(moat_inventory_find_network(inv, "red"), 1);
    moat_inventory_destroy(inv);
}
END_TEST

START_TEST(many_rows)
{
    struct moat_inventory *inv = moat_inventory_create();
    char text[40];
    NET(.name = "n");
    for (int i = 0; i < 3000; i++) {
        snprintf(text, sizeof text, "6c9f0c1e-0000-4000-8000-%012d", i);
        ck_assert_int_eq(VM(text, "same", NULL, 0), i);
        ck_assert_int_eq(VNIC(.id = text + 24, .vm = (unsigned)i), i);
    }
    for (int i = 0; i < 3000; i++) {
        snprintf(text, sizeof text, "6c9f0c1e-0000-4000-8000-%012d", i);
        ck_assert_int_eq(moat_inventory_find_vm(inv, text), i);
        ck_assert_int_eq(moat_inventory_find_vnic(inv, text + 24), i);
    }
    moat_inventory_destroy(inv);
}
END_TEST

TCase *inventory_tests(void)
{
    TCase *tc = tcase_create("inventory");
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, addresses, 0, sizeof addrs / sizeof *addrs);
    tcase_add_test(tc, refusals);
    tcase_add_test(tc, many_rows);
    return tc;
}
