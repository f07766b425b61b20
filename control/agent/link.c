/* SPDX-License-Identifier: Apache-2.0 */

/* Two sockets: one listens to RTNLGRP_LINK and is polled, the other asks and
 * commands and may block for as long as the kernel takes.  When the kernel says
 * that we lost messages (ENOBUFS) everything is asked for again. */

#include <config.h>

#include "link.h"

#include <errno.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <string.h>

#include "openvswitch/poll-loop.h"
#include "openvswitch/shash.h"
#include "openvswitch/vlog.h"
#include "timeval.h"
#include "util.h"

VLOG_DEFINE_THIS_MODULE(link);

static struct vlog_rate_limit rl = VLOG_RATE_LIMIT_INIT(5, 20);

static struct nl_sock *events, *requests;
static struct shash taps = SHASH_INITIALIZER(&taps);
static unsigned seqno = 1;
static bool resync;
static long long retry_at;

static void forget_index(int ifindex)
{
    struct shash_node *node;

    SHASH_FOR_EACH_SAFE (node, &taps) {
        struct link_tap *tap = node->data;
        if (tap->ifindex == ifindex) {
            free(tap);
            shash_delete(&taps, node);
            seqno++;
        }
    }
}

static bool is_tun(struct nlattr *info)
{
    struct nlattr *attrs[IFLA_INFO_MAX + 1];

    return info && !nla_parse_nested(attrs, IFLA_INFO_MAX, info, NULL) &&
           attrs[IFLA_INFO_KIND] && nla_len(attrs[IFLA_INFO_KIND]) >= 3 &&
           !strncmp(nla_data(attrs[IFLA_INFO_KIND]), "tun", 3);
}

static int on_message(struct nl_msg *msg, void *aux OVS_UNUSED)
{
    struct nlmsghdr *hdr = nlmsg_hdr(msg);
    struct nlattr *attrs[IFLA_MAX + 1];
    struct ifinfomsg *ifi;

    if (hdr->nlmsg_type != RTM_NEWLINK && hdr->nlmsg_type != RTM_DELLINK)
        return NL_OK;
    if (nlmsg_parse(hdr, sizeof *ifi, attrs, IFLA_MAX, NULL) < 0)
        return NL_OK;
    ifi = nlmsg_data(hdr);
    if (hdr->nlmsg_type == RTM_DELLINK) {
        forget_index(ifi->ifi_index);
        return NL_OK;
    }
    if (!attrs[IFLA_IFNAME] || !is_tun(attrs[IFLA_LINKINFO]))
        return NL_OK;
    const char *name = nla_get_string(attrs[IFLA_IFNAME]);
    struct link_tap *tap = shash_find_data(&taps, name);
    bool up = ifi->ifi_flags & IFF_UP;
    if (tap && tap->ifindex == ifi->ifi_index && tap->up == up)
        return NL_OK;
    forget_index(ifi->ifi_index); /* it may have been renamed */
    tap = xzalloc(sizeof *tap);
    *tap = (struct link_tap){ifi->ifi_index, up};
    free(shash_replace(&taps, name, tap));
    seqno++;
    return NL_OK;
}

static int no_sequence(struct nl_msg *msg OVS_UNUSED, void *aux OVS_UNUSED)
{
    return NL_OK;
}

static int dump(void)
{
    struct rtgenmsg gen = {.rtgen_family = AF_UNSPEC};

    shash_clear_free_data(&taps);
    seqno++;
    int rc = nl_send_simple(requests, RTM_GETLINK, NLM_F_DUMP, &gen, sizeof gen);
    return rc < 0 ? rc : nl_recvmsgs_default(requests);
}

int link_init(void)
{
    int rc = -NLE_NOMEM;

    events = nl_socket_alloc();
    requests = nl_socket_alloc();
    if (!events || !requests)
        goto fail;
    nl_socket_disable_seq_check(events);
    nl_socket_modify_cb(events, NL_CB_VALID, NL_CB_CUSTOM, on_message, NULL);
    nl_socket_modify_cb(events, NL_CB_SEQ_CHECK, NL_CB_CUSTOM, no_sequence, NULL);
    nl_socket_modify_cb(requests, NL_CB_VALID, NL_CB_CUSTOM, on_message, NULL);
    rc = nl_connect(events, NETLINK_ROUTE);
    if (!rc)
        rc = nl_connect(requests, NETLINK_ROUTE);
    if (!rc)
        rc = nl_socket_add_membership(events, RTNLGRP_LINK);
    if (!rc)
        rc = nl_socket_set_nonblocking(events);
    if (!rc)
        rc = dump(); /* after the subscription: nothing falls in between */
    if (!rc)
        return 0;
fail:
    VLOG_WARN_RL(&rl, "netlink: %s", nl_geterror(rc));
    nl_socket_free(events);
    nl_socket_free(requests);
    events = requests = NULL;
    retry_at = time_msec() + 5000;
    return -EIO;
}

void link_run(void)
{
    if (!events) {
        if (time_msec() >= retry_at)
            link_init();
        return;
    }
    for (int i = 0; i < 50; i++) { /* the rest in the next turn */
        int rc = nl_recvmsgs_default(events);
        if (rc == -NLE_AGAIN)
            break;
        if (rc == -NLE_NOMEM) {
            VLOG_INFO_RL(&rl, "netlink messages were lost, asking again");
            resync = true;
            break;
        }
        if (rc < 0) {
            VLOG_WARN_RL(&rl, "netlink: %s", nl_geterror(rc));
            break;
        }
    }
    if (resync && !dump())
        resync = false;
}

void link_wait(void)
{
    if (events)
        poll_fd_wait(nl_socket_get_fd(events), POLLIN);
    else
        poll_timer_wait_until(retry_at);
}

void link_exit(void)
{
    nl_socket_free(events);
    nl_socket_free(requests);
    events = requests = NULL;
    shash_destroy_free_data(&taps);
}

unsigned link_seqno(void)
{
    return seqno;
}

const struct shash *link_taps(void)
{
    return &taps;
}

int link_set_down(const char *name)
{
    struct link_tap *tap = shash_find_data(&taps, name);
    struct rtnl_link *link, *change;
    int rc = -NLE_NOMEM;

    if (!tap || !requests)
        return -ENODEV;
    link = rtnl_link_alloc();
    change = rtnl_link_alloc();
    if (link && change) {
        rtnl_link_set_ifindex(link, tap->ifindex);
        rtnl_link_unset_flags(change, IFF_UP);
        rc = rtnl_link_change(requests, link, change, 0);
    }
    rtnl_link_put(link);
    rtnl_link_put(change);
    if (rc) {
        VLOG_WARN_RL(&rl, "%s: cannot set it down: %s", name, nl_geterror(rc));
        return -EIO;
    }
    return 0;
}
