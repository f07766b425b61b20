/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_AGENT_TAPS_H
#define MOAT_AGENT_TAPS_H 1

/* VMs that do not pass the vhost library: finds kernel taps that are a VM's port
 * of a local bridge, reports them, and sets them down where the host says so.
 * Also vhost-user ports that belong to no vNIC.  No other link is touched. */

void taps_run(void);
void taps_wait(void);
void taps_exit(void);

#endif /* taps.h */
