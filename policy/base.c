/* SPDX-License-Identifier: Apache-2.0 */
#include "policy/policy.h"

/* What a VM cannot live without, after the policy's own tiers and before its
 * default.  A policy replaces it by a last tier of its own named `base`. */
static const char base_text[] =
    "tier base {\n"
    "    # Neighbours find each other.\n"
    "    rule \"arp\" allow from any to any service arp\n"
    "    rule \"neighbour discovery\" allow from any to any service icmp6 neighbor-solicitation, "
    "icmp6 neighbor-advertisement\n"
    "\n"
    "    # Only routers advertise.\n"
    "    rule \"router solicitation\" allow from vms to multicast, router, gateway service icmp6 "
    "router-solicitation\n"
    "    rule \"router advertisement\" allow from router, gateway to any service icmp6 "
    "router-advertisement\n"
    "\n"
    "    # VMs are DHCP clients, and only the network's servers answer.\n"
    "    rule \"dhcp request\" allow from vms to dhcp, multicast service udp 67 from port 68, "
    "udp 547 from port 546\n"
    "    rule \"dhcp reply\" allow from dhcp to any service udp 68 from port 67, "
    "udp 546 from port 547\n"
    "\n"
    "    # Path MTU discovery.\n"
    "    rule \"path mtu\" allow from any to any service icmp fragmentation-needed, "
    "icmp6 packet-too-big\n"
    "\n"
    "    # VMs join multicast groups (IGMP is protocol 2), routers ask who did.\n"
    "    rule \"multicast report\" allow from vms to multicast service protocol 2, "
    "icmp6 mld-report, icmp6 mld-done, icmp6 mld2-report\n"
    "    rule \"multicast query\" allow from router, gateway to any service protocol 2, "
    "icmp6 mld-query\n"
    "}\n";

const char *moat_policy_base_text(void)
{
    return base_text;
}
