/* SPDX-License-Identifier: Apache-2.0 */

/* Linux nf_conntrack: this process moves into a network namespace of its own, which ends with
 * it.  "vm" and "far" are tun devices; the namespace routes between them and nftables
 * judges what it forwards.
 *
 * Each packet of a batch carries its index (wire_mark).  The end of a batch is a marker
 * through each device: what has not come out before it was dropped. */

#include "tracker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define BATCH 250 /* packets that are under way at once; a device queues 1000 */
#define MARKER 0xffff

static int tun[2]; /* by enum moat_dir: where packets from the VM, to the VM go in */
static int netlink;

static void die(const char *what, ...)
{
    va_list args;

    va_start(args, what);
    fprintf(stderr, "differential: ");
    vfprintf(stderr, what, args);
    fprintf(stderr, "\n");
    exit(1);
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);

    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        die("cannot write %s to %s: %s", text, path, strerror(errno));
    close(fd);
}

static void command(const char *text)
{
    if (system(text))
        die("this failed: %s", text);
}

static int make_tun(const char *name)
{
    struct ifreq ifr;
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);

    memset(&ifr, 0, sizeof ifr);
    ifr.ifr_flags = IFF_TUN | IFF_NO_PI;
    snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", name);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &ifr))
        die("no tun device %s: %s", name, strerror(errno));
    return fd;
}

static const char rules[] = "table inet moat {\n"
                            "  chain opens {\n"
                            "    ip saddr { 10.0.0.1, 10.0.0.3 } accept\n"
                            "    ip daddr { 10.0.0.2, 10.0.0.3 } accept\n"
                            "    ip6 saddr { 2001:db8::1, 2001:db8::3 } accept\n"
                            "    ip6 daddr { 2001:db8::2, 2001:db8::3 } accept\n"
                            "  }\n"
                            "  chain forward {\n"
                            "    type filter hook forward priority 0; policy drop;\n"
                            "    udp dport 9 accept\n"
                            "    ct state invalid drop\n"
                            "    ct state established,related accept\n"
                            "    ct state new jump opens\n"
                            "  }\n"
                            "}\n";

void kernel_start(void)
{
    struct sockaddr_nl any = {.nl_family = AF_NETLINK};
    cpu_set_t one;
    FILE *nft;
    int cpu = sched_getcpu();

    if (unshare(CLONE_NEWNET))
        die("no network namespace: %s (root is needed)", strerror(errno));
    /* One processor: one queue between the devices, so that order is kept. */
    CPU_ZERO(&one);
    CPU_SET(cpu < 0 ? 0 : (unsigned)cpu, &one);
    sched_setaffinity(0, sizeof one, &one);
    write_file("/proc/sys/net/ipv4/ip_forward", "1");
    write_file("/proc/sys/net/ipv6/conf/all/forwarding", "1");
    write_file("/proc/sys/net/ipv4/conf/all/rp_filter", "0");
    write_file("/proc/sys/net/ipv4/conf/default/rp_filter", "0");
    write_file("/proc/sys/net/ipv4/conf/all/send_redirects", "0");
    tun[0] = make_tun("vm");
    tun[1] = make_tun("far");
    command("ip link set vm addrgenmode none mtu 65535 txqueuelen 1000 up && "
            "ip link set far addrgenmode none mtu 65535 txqueuelen 1000 up");
    command("ip route add 10.0.0.0/24 dev vm && ip route add 10.0.1.0/24 dev far && "
            "ip route add 2001:db8::/48 dev vm && ip route add 2001:db8:1::/48 dev far");
    nft = popen("nft -f -", "w");
    if (!nft || fputs(rules, nft) < 0 || pclose(nft))
        die("nft refused the rules (is nftables installed?)");
    write_file("/proc/sys/net/netfilter/nf_conntrack_tcp_loose", "0");
    write_file("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "0");
    write_file("/proc/sys/net/netfilter/nf_conntrack_checksum", "1");
    netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER);
    if (netlink < 0 || bind(netlink, (struct sockaddr *)&any, sizeof any))
        die("no netlink to netfilter: %s", strerror(errno));
}

void kernel_forget(void)
{
    struct {
        struct nlmsghdr head;
        struct nfgenmsg body;
    } ask = {.head = {.nlmsg_len = sizeof ask,
                      .nlmsg_type = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE,
                      .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK}};
    struct {
        struct nlmsghdr head;
        struct nlmsgerr body;
        char more[64];
    } answer;

    if (send(netlink, &ask, sizeof ask, 0) != sizeof ask ||
        recv(netlink, &answer, sizeof answer, 0) < (ssize_t)sizeof answer.head ||
        answer.head.nlmsg_type != NLMSG_ERROR || answer.body.error)
        die("the kernel does not flush its connections");
}

static void write_packet(int fd, const uint8_t *ip, uint32_t size)
{
    if (write(fd, ip, size) != (ssize_t)size)
        die("writing %u bytes to a tun device: %s", size, strerror(errno));
}

/* UDP to port 9, which passes without judgement. */
static void write_marker(unsigned dir)
{
    uint8_t ip[28] = {0x45, 0,  0,  28, 0xff, 0xff, 0, 0, 64, 17, 0, 0, 10, 0,
                      dir,  99, 10, 0,  !dir, 98,   0, 9, 0,  9,  0, 8, 0,  0};
    uint32_t sum = 0;

    for (unsigned i = 0; i < 20; i += 2)
        sum += (uint32_t)ip[i] << 8 | ip[i + 1];
    sum = ~((sum & 0xffff) + (sum >> 16));
    ip[10] = (uint8_t)(sum >> 8);
    ip[11] = (uint8_t)sum;
    write_packet(tun[dir], ip, sizeof ip);
}

/* Reads what comes out of one device, up to the marker. */
static void collect(unsigned dir, struct kernel_packet *v, unsigned n)
{
    static uint8_t buf[65536];
    struct pollfd p = {.fd = tun[!dir], .events = POLLIN};

    for (;;) {
        ssize_t got = read(p.fd, buf, sizeof buf);
        uint32_t i;

        if (got < 0 && errno == EAGAIN) {
            if (poll(&p, 1, 10000) < 1)
                die("a packet that must pass the kernel does not come out");
            continue;
        }
        if (got < 20)
            die("reading from a tun device: %s", strerror(errno));
        if (buf[0] >> 4 == 6 && buf[24] == 0xff)
            continue; /* the device looks for its neighbours */
        i = wire_marked(buf);
        if (i == MARKER && buf[0] == 0x45 && buf[9] == 17)
            return;
        if (i < n && v[i].from_vm == (dir == MOAT_FROM_VM) && v[i].size == (uint32_t)got + 14)
            v[i].accepted = true;
        else
            die("a packet of %zd bytes comes out that nobody sent", got);
    }
}

static void judge_batch(struct kernel_packet *v, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        v[i].accepted = false;
        wire_mark(v[i].frame, i);
        write_packet(tun[v[i].from_vm ? MOAT_FROM_VM : MOAT_TO_VM], v[i].frame + 14,
                     v[i].size - 14);
    }
    for (unsigned dir = 0; dir < 2; dir++) {
        write_marker(dir);
        collect(dir, v, n);
    }
}

void kernel_judge(struct kernel_packet *v, unsigned n)
{
    for (unsigned i = 0; i < n; i += BATCH)
        judge_batch(v + i, n - i < BATCH ? n - i : BATCH);
}
