/* SPDX-License-Identifier: Apache-2.0 */
/* Captures for tests of replay:
 *
 *   make_capture NAME > FILE       one of those below, as pcap
 *   make_capture --cut N < FILE    its first N bytes
 *   make_capture --spoil SEED < FILE   with some bytes changed
 *
 * The VM in the middle has 52:54:00:00:00:05, 10.0.0.5 and 2001:db8::5; its neighbour .6. */

#include <check.h>
#include <pcap/pcap.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "datapath/parse.h"
#include "tests/lib/packet.h"

static const uint8_t vm[6] = {0x52, 0x54, 0, 0, 0, 5}, peer[6] = {0x52, 0x54, 0, 0, 0, 6};
static const uint8_t other[6] = {0x52, 0x54, 0, 0, 0, 7};
static const uint8_t all[6] = {255, 255, 255, 255, 255, 255};
static const uint8_t vm4[4] = {10, 0, 0, 5}, peer4[4] = {10, 0, 0, 6}, other4[4] = {10, 0, 0, 7};
static const uint8_t vm6[16] = {0x20, 1, 0x0d, 0xb8, [15] = 5};
static const uint8_t peer6[16] = {0x20, 1, 0x0d, 0xb8, [15] = 6};

static pcap_t *dead;
static pcap_dumper_t *dump;
static uint64_t now_us = 1700000000000000;
static int link_type;

/* --- writing --- */

static void write_at(uint64_t us, const uint8_t *data, uint32_t len, uint32_t total)
{
    struct pcap_pkthdr h = {
        .ts = {.tv_sec = (time_t)(us / 1000000), .tv_usec = (suseconds_t)(us % 1000000)},
        .caplen = len,
        .len = total};

    pcap_dump((u_char *)dump, &h, data);
}

/* The frame, with its Ethernet header changed for what the link type has. */
static void put(const struct frame *f)
{
    uint8_t data[2100] = {0};
    uint32_t head = 0;

    now_us += 1000;
    if (link_type == DLT_EN10MB) {
        write_at(now_us, f->data, f->len, f->len);
        return;
    }
    if (link_type == DLT_LINUX_SLL) {
        data[1] = memcmp(f->data, all, 6) ? 3 : 1;
        data[3] = 1;
        data[5] = 6;
        memcpy(data + 6, f->data + 6, 6);
        memcpy(data + 14, f->data + 12, 2);
        head = 16;
    } else if (link_type == DLT_LINUX_SLL2) {
        memcpy(data, f->data + 12, 2);
        data[9] = 1;
        data[10] = memcmp(f->data, all, 6) ? 3 : 1;
        data[11] = 6;
        memcpy(data + 12, f->data + 6, 6);
        head = 20;
    } else if (f->data[12] == 8 && f->data[13] == 6) {
        return; /* no place for ARP */
    }
    memcpy(data + head, f->data + 14, f->len - 14);
    write_at(now_us, data, head + f->len - 14, head + f->len - 14);
}

static void wait_s(unsigned s)
{
    now_us += s * 1000000ull;
}

/* --- frames --- */

static void tcp(int out, uint16_t sport, uint16_t dport, uint32_t seq, uint32_t ack, uint8_t flags,
                uint32_t len)
{
    struct frame f;

    frame_eth(&f, out ? peer : vm, out ? vm : peer);
    frame_ip4(&f, out ? vm4 : peer4, out ? peer4 : vm4, 6);
    frame_tcp(&f, sport, dport, seq, ack, flags, 8000);
    frame_data(&f, len);
    frame_end(&f);
    put(&f);
}

static void udp(int out, uint16_t sport, uint16_t dport)
{
    struct frame f;

    frame_eth(&f, out ? peer : vm, out ? vm : peer);
    frame_ip4(&f, out ? vm4 : peer4, out ? peer4 : vm4, 17);
    frame_udp(&f, sport, dport);
    frame_data(&f, 30);
    frame_end(&f);
    put(&f);
}

static void udp6(int out, uint16_t sport, uint16_t dport)
{
    struct frame f;

    frame_eth(&f, out ? peer : vm, out ? vm : peer);
    frame_ip6(&f, out ? vm6 : peer6, out ? peer6 : vm6, 17);
    frame_udp(&f, sport, dport);
    frame_end(&f);
    put(&f);
}

static void ping(int out, int reply)
{
    struct frame f;

    frame_eth(&f, out ? peer : vm, out ? vm : peer);
    frame_ip4(&f, out ? vm4 : peer4, out ? peer4 : vm4, 1);
    frame_icmp(&f, reply ? 0 : 8, 0, 77);
    frame_data(&f, 20);
    frame_end(&f);
    put(&f);
}

static void arp(int out)
{
    struct frame f;

    frame_eth(&f, out ? all : vm, out ? vm : peer);
    frame_arp(&f, out ? 1 : 2, out ? vm : peer, out ? vm4 : peer4, out ? all : vm,
              out ? peer4 : vm4);
    put(&f);
}

/* --- captures --- */

/* Web, DNS, ping, and what is refused. */
static void day(void)
{
    struct frame f;

    arp(1);
    arp(0);
    tcp(1, 40000, 80, 1000, 0, MOAT_TCP_SYN, 0);
    tcp(0, 80, 40000, 5000, 1001, MOAT_TCP_SYN | MOAT_TCP_ACK, 0);
    tcp(1, 40000, 80, 1001, 5001, MOAT_TCP_ACK, 0);
    tcp(1, 40000, 80, 1001, 5001, MOAT_TCP_ACK | MOAT_TCP_PSH, 100);
    tcp(0, 80, 40000, 5001, 1101, MOAT_TCP_ACK, 1000);
    tcp(0, 80, 40000, 5001 + (1u << 30), 1101, MOAT_TCP_ACK, 1000); /* a blind injection */
    tcp(1, 40000, 80, 1101, 6001, MOAT_TCP_ACK | MOAT_TCP_FIN, 0);
    tcp(0, 80, 40000, 6001, 1102, MOAT_TCP_ACK | MOAT_TCP_FIN, 0);
    tcp(1, 40000, 80, 1102, 6002, MOAT_TCP_ACK, 0);
    udp(1, 5353, 53);
    udp(0, 53, 5353);
    ping(1, 0);
    ping(0, 1);
    ping(0, 1);
    tcp(0, 999, 22, 1, 0, MOAT_TCP_SYN, 0);
    tcp(1, 40001, 25, 1, 0, MOAT_TCP_SYN, 0);
    tcp(0, 443, 40002, 1, 1, MOAT_TCP_ACK, 10); /* of a connection before the capture */
    udp6(1, 5353, 53);
    udp6(0, 53, 5353);
    wait_s(300);
    udp(0, 53, 5353); /* the session has timed out */
    now_us -= 200 * 1000000ull;
    udp(1, 5353, 53); /* the clock goes back */
    udp(0, 53, 5353);
    frame_eth(&f, all, peer);
    frame_ip4(&f, peer4, (const uint8_t[4]){10, 0, 0, 255}, 17);
    frame_udp(&f, 138, 138);
    frame_end(&f);
    put(&f);
}

/* On the VM's wire, but not its own. */
static void strangers(void)
{
    struct frame f;

    frame_eth(&f, other, peer);
    frame_ip4(&f, peer4, other4, 17);
    frame_udp(&f, 1, 53);
    frame_end(&f);
    put(&f);
    frame_eth(&f, peer, vm);
    frame_ip4(&f, other4, peer4, 17); /* somebody else's address */
    frame_udp(&f, 1, 53);
    frame_end(&f);
    put(&f);
    frame_eth(&f, peer, vm);
    frame_vlan(&f, 0x8100, 7);
    frame_ip4(&f, vm4, peer4, 17);
    frame_udp(&f, 1, 53);
    frame_end(&f);
    put(&f);
    frame_eth(&f, peer, vm);
    f.data[12] = 0x88;
    f.data[13] = 0xcc; /* LLDP */
    frame_data(&f, 40);
    put(&f);
}

/* Lengths and times that nobody would believe. */
static void absurd(void)
{
    struct frame f;
    uint8_t none[1] = {0};

    frame_eth(&f, peer, vm);
    frame_ip4(&f, vm4, peer4, 17);
    frame_udp(&f, 5353, 53);
    frame_data(&f, 1000);
    frame_end(&f);
    for (uint32_t len = 0; len < 60; len++)
        write_at(now_us += 1000, f.data, len, f.len);
    write_at(now_us, none, 0, 0);
    write_at(0, f.data, f.len, f.len);
    write_at(UINT32_MAX * 1000000ull, f.data, f.len, f.len);
    write_at(1, f.data, f.len, f.len);
    write_at(UINT32_MAX * 1000000ull, f.data, f.len, f.len);
    write_at(now_us, f.data, f.len, UINT32_MAX);
    for (uint64_t s = 0; s < UINT32_MAX; s += 100000000)
        write_at(s * 1000000, f.data, 100, f.len);
}

static const struct {
    const char *name;
    int link;
    void (*fn)(void);
} captures[] = {
    {"day", DLT_EN10MB, day},
    {"day-raw", DLT_RAW, day},
    {"day-sll", DLT_LINUX_SLL, day},
    {"day-sll2", DLT_LINUX_SLL2, day},
    {"strangers", DLT_EN10MB, strangers},
    {"absurd", DLT_EN10MB, absurd},
    {"wireless", DLT_IEEE802_11, day},
};

/* --- files that are broken --- */

static int mangle(const char *how, unsigned long n)
{
    static uint8_t data[1 << 20];
    size_t len = fread(data, 1, sizeof data, stdin);
    uint64_t seed = n;

    if (!strcmp(how, "--cut"))
        len = n < len ? n : len;
    else
        for (unsigned i = 0; len && i < 1 + n % 8; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            data[(seed >> 33) % len] = (uint8_t)(seed >> 25);
        }
    return fwrite(data, 1, len, stdout) == len ? 0 : 1;
}

/* tests/lib/packet.h checks itself with Check, so a test it must be. */
static size_t which;

START_TEST(make)
{
    captures[which].fn();
}
END_TEST

static int run_make(void)
{
    Suite *s = suite_create("make_capture");
    TCase *t = tcase_create("make_capture");
    SRunner *r;
    int failed;

    link_type = captures[which].link;
    dead = pcap_open_dead(link_type, 65535);
    dump = pcap_dump_open(dead, "-");
    if (!dump)
        return 1;
    tcase_add_test(t, make);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_set_fork_status(r, CK_NOFORK);
    srunner_run_all(r, CK_SILENT);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    pcap_dump_close(dump);
    pcap_close(dead);
    return failed != 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && (!strcmp(argv[1], "--cut") || !strcmp(argv[1], "--spoil")))
        return mangle(argv[1], strtoul(argv[2], NULL, 10));
    for (; argc == 2 && which < sizeof captures / sizeof *captures; which++)
        if (!strcmp(argv[1], captures[which].name))
            return run_make();
    fprintf(stderr, "usage: make_capture NAME | --cut N | --spoil SEED\n");
    return 2;
}
