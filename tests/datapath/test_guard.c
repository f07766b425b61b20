/* SPDX-License-Identifier: Apache-2.0 */

/* What a VM may say of itself: rows of frames for each mode, as whole packets through the
 * filter core with a policy that permits everything. */

#include "datapath/guard.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "datapath/mapping.h"
#include "tests/lib/rig.h"
#include "tests/lib/vm_frame.h"

#define A 0
#define B 1

static const char everything[] = "policy \"t\" version 1\n"
                                 "service all = protocol 1, arp\n"
                                 "tier main { allow from any to any; allow from any to any service "
                                 "arp }\n";

static const uint8_t broadcast[6] = {255, 255, 255, 255, 255, 255};
static const uint8_t none4[4], none6[16];
static const uint8_t foreign4[4] = {10, 0, 0, 77}, other4[4] = {10, 0, 0, 78};
static const uint8_t foreign6[16] = {0x20, 1, 0xd, 0xb8, [15] = 77};
static const uint8_t foreign_mac[6] = {2, 0, 0, 0, 0, 77};
static const uint8_t all_nodes[16] = {0xff, 2, [15] = 1};
static const uint8_t link_local_a[16] = {0xfe, 0x80, 0, 0,    0,    0, 0, 0,
                                         0,    0,    0, 0xff, 0xfe, 0, 0, 1};

static struct rig r;
static struct moat_settings settings;

static void setup(void)
{
    rig_start(&r, NULL, everything);
    moat_settings_init(&settings);
}

static void teardown(void)
{
    rig_destroy(&r);
}

static enum moat_reason says(struct frame f)
{
    enum moat_reason reason;

    rig_push(&r, A, MOAT_FROM_VM, f.data, f.len, &reason);
    return reason;
}

static struct frame arp(uint16_t op, const uint8_t sha[6], const uint8_t spa[4],
                        const uint8_t tpa[4])
{
    struct frame f;

    frame_eth(&f, broadcast, rig_mac[A]);
    frame_arp(&f, op, sha, spa, none6, tpa);
    frame_end(&f);
    return f;
}

static struct frame from4(const uint8_t src[4])
{
    struct frame f = vm_udp(A, B, 1000, 2000);

    memcpy(f.data + f.ip_off + 12, src, 4);
    return f;
}

static struct frame from6(const uint8_t src[16])
{
    struct frame f = vm_udp6(A, B, 1000, 2000);

    memcpy(f.data + f.ip_off + 8, src, 16);
    return f;
}

static struct frame with_mac(struct frame f, const uint8_t mac[6])
{
    memcpy(f.data + 6, mac, 6);
    return f;
}

/* Target, and a link-layer address option of the given type (0: none). */
static struct frame nd(uint8_t type, const uint8_t src[16], const uint8_t target[16], uint8_t opt,
                       const uint8_t mac[6])
{
    uint8_t body[4 + 16 + 8] = {0};
    struct frame f;

    memcpy(body + 4, target, 16);
    body[20] = opt;
    body[21] = 1;
    memcpy(body + 22, mac, 6);
    f = vm_icmp6(A, all_nodes, type, body, opt ? sizeof body : 20);
    memcpy(f.data + f.ip_off + 8, src, 16);
    return f;
}

START_TEST(strict_holds_a_vm_to_its_own)
{
    ck_assert_int_eq(says(from4(rig_ip4[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(from6(rig_ip6[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(from6(link_local_a)), MOAT_R_NONE);
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_SPOOF_IP);
    ck_assert_int_eq(says(from6(foreign6)), MOAT_R_SPOOF_IP);
    ck_assert_int_eq(says(from4(none4)), MOAT_R_SPOOF_IP);
    ck_assert_int_eq(says(from6(none6)), MOAT_R_SPOOF_IP);
    ck_assert_int_eq(says(with_mac(from4(rig_ip4[A]), foreign_mac)), MOAT_R_SPOOF_MAC);
    ck_assert_int_eq(says(with_mac(from6(rig_ip6[A]), foreign_mac)), MOAT_R_SPOOF_MAC);
}
END_TEST

START_TEST(arp_speaks_for_the_vm_only)
{
    ck_assert_int_eq(says(arp(1, rig_mac[A], rig_ip4[A], rig_ip4[B])), MOAT_R_NONE);
    ck_assert_int_eq(says(arp(2, rig_mac[A], rig_ip4[A], rig_ip4[B])), MOAT_R_NONE);
    ck_assert_int_eq(says(arp(1, rig_mac[A], rig_ip4[A], rig_ip4[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(arp(1, rig_mac[A], none4, rig_ip4[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(arp(1, rig_mac[A], foreign4, rig_ip4[B])), MOAT_R_SPOOF_ARP);
    ck_assert_int_eq(says(arp(2, rig_mac[A], foreign4, rig_ip4[B])), MOAT_R_SPOOF_ARP);
    ck_assert_int_eq(says(arp(1, foreign_mac, rig_ip4[A], rig_ip4[B])), MOAT_R_SPOOF_ARP);
    /* A probe for another's address makes the other's own probe fail. */
    ck_assert_int_eq(says(arp(1, rig_mac[A], none4, rig_ip4[B])), MOAT_R_SPOOF_ARP);
}
END_TEST

START_TEST(neighbour_discovery_speaks_for_the_vm_only)
{
    ck_assert_int_eq(says(nd(135, rig_ip6[A], rig_ip6[B], 1, rig_mac[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(nd(136, rig_ip6[A], rig_ip6[A], 2, rig_mac[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(nd(136, rig_ip6[A], link_local_a, 2, rig_mac[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(nd(135, none6, rig_ip6[A], 0, rig_mac[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(nd(135, none6, rig_ip6[B], 0, rig_mac[A])), MOAT_R_SPOOF_ND);
    ck_assert_int_eq(says(nd(136, rig_ip6[A], foreign6, 2, rig_mac[A])), MOAT_R_SPOOF_ND);
    ck_assert_int_eq(says(nd(136, rig_ip6[A], rig_ip6[A], 2, foreign_mac)), MOAT_R_SPOOF_ND);
    ck_assert_int_eq(says(nd(135, rig_ip6[A], rig_ip6[B], 1, foreign_mac)), MOAT_R_SPOOF_ND);
    ck_assert_int_eq(says(nd(135, foreign6, rig_ip6[B], 1, rig_mac[A])), MOAT_R_SPOOF_IP);
}
END_TEST

START_TEST(a_vm_is_no_router)
{
    static const uint8_t body[36];
    struct frame redirect4 = vm_icmp(A, B, 5, 0), advert4 = vm_icmp(A, B, 9, 0);

    ck_assert_int_eq(says(vm_icmp6(A, all_nodes, 134, body, 12)), MOAT_R_RA_GUARD);
    ck_assert_int_eq(says(vm_icmp6(A, all_nodes, 137, body, 36)), MOAT_R_RA_GUARD);
    ck_assert_int_eq(says(redirect4), MOAT_R_RA_GUARD);
    ck_assert_int_eq(says(advert4), MOAT_R_RA_GUARD);
    settings.ra_guard = 0;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(vm_icmp6(A, all_nodes, 134, body, 12)), MOAT_R_NONE);
    ck_assert_int_eq(says(redirect4), MOAT_R_NONE);
}
END_TEST

/* Behind extension headers it is the same advertisement (RFC 7113). */
START_TEST(extension_headers_hide_no_advertisement)
{
    static const uint8_t ext[] = {0, 60, 43};

    for (unsigned i = 0; i < sizeof ext; i++) {
        struct frame f;

        frame_eth(&f, broadcast, rig_mac[A]);
        frame_ip6(&f, rig_ip6[A], all_nodes, 58);
        frame_ext6(&f, ext[i], 1);
        if (ext[i] == 43)
            f.data[f.len - 14] = 4; /* a routing type without segments left */
        frame_icmp(&f, 134, 0, 0);
        frame_data(&f, 12);
        frame_end(&f);
        ck_assert_int_eq(says(f), MOAT_R_RA_GUARD);
    }
}
END_TEST

static struct frame bootp(uint16_t sport, uint16_t dport, uint8_t op, const uint8_t mac[6],
                          const uint8_t src[4])
{
    uint8_t body[240] = {op, 1, 6};
    struct frame f;

    memcpy(body + 28, mac, 6);
    frame_eth(&f, broadcast, rig_mac[A]);
    frame_ip4(&f, src, (const uint8_t[4]){255, 255, 255, 255}, 17);
    frame_udp(&f, sport, dport);
    frame_bytes(&f, body, sizeof body);
    frame_end(&f);
    return f;
}

START_TEST(a_vm_is_no_dhcp_server)
{
    struct frame shorter = bootp(68, 67, 1, rig_mac[A], none4), server6 = vm_udp6(A, B, 547, 546);

    ck_assert_int_eq(says(bootp(68, 67, 1, rig_mac[A], none4)), MOAT_R_NONE);
    ck_assert_int_eq(says(bootp(68, 67, 1, rig_mac[A], rig_ip4[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(bootp(68, 67, 1, foreign_mac, none4)), MOAT_R_SPOOF_DHCP);
    ck_assert_int_eq(says(bootp(67, 68, 2, rig_mac[B], rig_ip4[A])), MOAT_R_DHCP_GUARD);
    ck_assert_int_eq(says(bootp(67, 67, 2, rig_mac[B], rig_ip4[A])), MOAT_R_DHCP_GUARD);
    ck_assert_int_eq(says(bootp(4000, 68, 2, rig_mac[B], rig_ip4[A])), MOAT_R_DHCP_GUARD);
    ck_assert_int_eq(says(server6), MOAT_R_DHCP_GUARD);
    /* Who asks cannot be seen. */
    shorter.len = shorter.l4_off + 8 + 28;
    frame_end(&shorter);
    ck_assert_int_eq(says(shorter), MOAT_R_L4_MALFORMED);

    settings.dhcp_guard = 0;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(bootp(67, 68, 2, rig_mac[B], rig_ip4[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(server6), MOAT_R_NONE);
}
END_TEST

START_TEST(off_believes_all_sources)
{
    settings.spoof = MOAT_SPOOF_OFF;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_NONE);
    ck_assert_int_eq(says(with_mac(from6(foreign6), foreign_mac)), MOAT_R_NONE);
    ck_assert_int_eq(says(arp(2, foreign_mac, foreign4, rig_ip4[B])), MOAT_R_NONE);
    ck_assert_int_eq(says(bootp(67, 68, 2, rig_mac[B], rig_ip4[A])), MOAT_R_DHCP_GUARD);
}
END_TEST

START_TEST(learn_once_takes_the_first_address)
{
    struct moat_event ev;
    struct moat_slot_info info;

    settings.spoof = MOAT_SPOOF_LEARN;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(with_mac(from4(foreign4), foreign_mac)), MOAT_R_SPOOF_MAC);
    ck_assert_int_eq(says(from4(none4)), MOAT_R_SPOOF_IP);
    ck_assert_int_eq(says(arp(1, rig_mac[A], none4, foreign4)),
                     MOAT_R_NONE);                          /* a probe decides nothing */
    ck_assert_int_eq(says(from4(rig_ip4[A])), MOAT_R_NONE); /* its own already */
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_NONE);
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_NONE);
    ck_assert_int_eq(says(from4(other4)), MOAT_R_SPOOF_IP);
    ck_assert_int_eq(says(arp(1, rig_mac[A], none4, other4)), MOAT_R_SPOOF_ARP);
    rig_pass_time(&r, 100);
    ck_assert(rig_event(&r, MOAT_EV_LEARNT, &ev));
    ck_assert_int_eq(ev.flow.family, MOAT_FAM_IP4);
    ck_assert_mem_eq(ev.flow.local, foreign4, 4);
    ck_assert(!rig_event(&r, MOAT_EV_LEARNT, &ev));
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_NONE);
    ck_assert_int_eq(says(from4(other4)), MOAT_R_SPOOF_IP);
    /* The other family has its own first address, here from neighbour discovery. */
    ck_assert_int_eq(says(nd(136, rig_ip6[A], foreign6, 2, rig_mac[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(from6(foreign6)), MOAT_R_NONE);
    rig_pass_time(&r, 100);
    ck_assert(moat_slot_info(r.e, 0, &info));
    ck_assert_uint_eq(info.n_learnt, 2);
    ck_assert_mem_eq(info.learnt[0].addr, foreign4, 4);
    ck_assert_mem_eq(info.learnt[1].addr, foreign6, 16);
    /* Back to strict, and what was learnt does not count. */
    settings.spoof = MOAT_SPOOF_STRICT;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_SPOOF_IP);
}
END_TEST

/* "No address in the inventory: any" is for strict only. */
START_TEST(learn_once_without_an_inventory)
{
    struct moat_slot_conf c;
    char err[256];

    rig_conf(A, MOAT_SLOT_ACTIVE, &c);
    c.n_addrs = 0;
    c.settings.spoof = MOAT_SPOOF_LEARN;
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), 0);
    ck_assert_int_eq(says(arp(1, rig_mac[A], foreign4, rig_ip4[B])), MOAT_R_NONE);
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_NONE);
    ck_assert_int_eq(says(from4(rig_ip4[A])), MOAT_R_SPOOF_IP);
    /* Released and claimed: perhaps another VM's by now. */
    ck_assert_int_eq(moat_slot_release(r.e, rig_vnic[A], err, sizeof err), 0);
    ck_assert_int_eq(moat_slot_claim(r.e, &c, err, sizeof err), 0);
    rig_publish(&r, A, everything);
    ck_assert_int_eq(says(from4(rig_ip4[A])), MOAT_R_NONE);
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_SPOOF_IP);
}
END_TEST

START_TEST(tags_by_setting)
{
    struct frame f = from4(rig_ip4[A]);

    ck_assert_int_eq(says(vm_tagged(f, 0x8100, 0)), MOAT_R_NONE); /* priority only */
    ck_assert_int_eq(says(vm_tagged(f, 0x8100, 7)), MOAT_R_VLAN);
    ck_assert_int_eq(says(vm_tagged(vm_tagged(f, 0x8100, 0), 0x88a8, 0)), MOAT_R_VLAN);
    settings.vlan = MOAT_VLAN_INSPECT;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(vm_tagged(f, 0x8100, 7)), MOAT_R_NONE);
    ck_assert_int_eq(says(vm_tagged(vm_tagged(f, 0x8100, 7), 0x88a8, 9)), MOAT_R_NONE);
    ck_assert_int_eq(says(vm_tagged(vm_tagged(vm_tagged(f, 0x8100, 1), 0x8100, 2), 0x8100, 3)),
                     MOAT_R_VLAN);
    /* They hide nothing. */
    ck_assert_int_eq(says(vm_tagged(from4(foreign4), 0x8100, 7)), MOAT_R_SPOOF_IP);
    ck_assert_int_eq(says(vm_tagged(vm_tagged(from4(foreign4), 0x8100, 7), 0x88a8, 9)),
                     MOAT_R_SPOOF_IP);
}
END_TEST

/* A session belongs to its VLAN: an answer in another one is none. */
START_TEST(vlans_keep_sessions_apart)
{
    struct frame syn = vm_tcp(A, B, 4000, 80, 100, 0, MOAT_TCP_SYN, 0);
    struct frame answer = vm_tcp(B, A, 80, 4000, 500, 101, MOAT_TCP_SYN | MOAT_TCP_ACK, 0);
    struct frame seven = vm_tagged(answer, 0x8100, 7), eight = vm_tagged(answer, 0x8100, 8);
    enum moat_reason reason;

    settings.vlan = MOAT_VLAN_INSPECT;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(vm_tagged(syn, 0x8100, 7)), MOAT_R_NONE);
    ck_assert(!rig_push(&r, A, MOAT_TO_VM, eight.data, eight.len, &reason));
    ck_assert_int_eq(reason, MOAT_R_TCP_NO_SESSION);
    ck_assert(!rig_push(&r, A, MOAT_TO_VM, answer.data, answer.len, &reason));
    ck_assert(rig_push(&r, A, MOAT_TO_VM, seven.data, seven.len, &reason));
}
END_TEST

START_TEST(ethertypes_by_list)
{
    struct frame lldp;
    enum moat_reason reason;

    frame_eth(&lldp, broadcast, rig_mac[A]);
    memcpy(lldp.data + 12, "\x88\xcc", 2);
    frame_data(&lldp, 50);
    ck_assert_int_eq(says(lldp), MOAT_R_L2_TYPE);
    settings.n_ethertypes = 1;
    settings.ethertypes[0] = 0x88cc;
    settings.ethertypes[1] = 0x88cd; /* not in the list */
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(lldp), MOAT_R_NONE);
    ck_assert_int_eq(says(with_mac(lldp, foreign_mac)), MOAT_R_SPOOF_MAC);
    ck_assert(rig_push(&r, A, MOAT_TO_VM, lldp.data, lldp.len, &reason));
    lldp.data[13] = 0xcd;
    ck_assert_int_eq(says(lldp), MOAT_R_L2_TYPE);
    lldp.data[13] = 0xcc;
    ck_assert_int_eq(says(vm_tagged(lldp, 0x8100, 7)), MOAT_R_VLAN);
}
END_TEST

/* What was learnt outlives the switch; what a crash left half written does not. */
START_TEST(what_was_learnt_survives)
{
    char path[] = "/tmp/moat-test-XXXXXX";
    int fd = mkstemp(path);

    ck_assert_int_ge(fd, 0);
    close(fd);
    unlink(path);
    rig_destroy(&r);
    rig_start(&r, path, everything);
    settings.spoof = MOAT_SPOOF_LEARN;
    rig_settings(&r, A, &settings);
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_NONE);
    r.e->map->slots[0].learnt[1].state = MOAT_LEARNING;
    rig_destroy(&r);
    rig_create(&r, path);
    unlink(path);
    ck_assert_int_eq(says(from4(other4)), MOAT_R_SPOOF_IP);
    ck_assert_int_eq(says(from4(foreign4)), MOAT_R_NONE);
    ck_assert_int_eq(says(from6(foreign6)), MOAT_R_NONE);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("guard");
    TCase *tc = tcase_create("modes");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, strict_holds_a_vm_to_its_own);
    tcase_add_test(tc, arp_speaks_for_the_vm_only);
    tcase_add_test(tc, neighbour_discovery_speaks_for_the_vm_only);
    tcase_add_test(tc, a_vm_is_no_router);
    tcase_add_test(tc, extension_headers_hide_no_advertisement);
    tcase_add_test(tc, a_vm_is_no_dhcp_server);
    tcase_add_test(tc, off_believes_all_sources);
    tcase_add_test(tc, learn_once_takes_the_first_address);
    tcase_add_test(tc, learn_once_without_an_inventory);
    tcase_add_test(tc, tags_by_setting);
    tcase_add_test(tc, vlans_keep_sessions_apart);
    tcase_add_test(tc, ethertypes_by_list);
    tcase_add_test(tc, what_was_learnt_survives);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed != 0;
}
