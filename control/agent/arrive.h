/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOAT_ARRIVE_H
#define MOAT_ARRIVE_H 1

/* Policy, state or firewall is missing: what happens, and which setting said so.
 * Pure. */

#include <stdbool.h>
#include <stdint.h>

#include "migrate.h"
#include "moat/settings.h"

/* Where a setting or a policy was found. */
enum arrive_from {
    FROM_NOWHERE, /* the built-in default */
    FROM_HOST_FILE,
    FROM_DATABASE,
    FROM_HAND_OVER,
};

const char *arrive_from_name(enum arrive_from);

struct arrive_in {
    bool has_policy;                      /* the slot has a ruleset */
    const struct moat_settings *settings; /* in force for this vNIC */
    enum arrive_from settings_from;
    enum mig_open why; /* what is known of its sessions */
};

struct arrive_out {
    bool decided;      /* a setting had to decide */
    uint32_t pickup_s; /* for MOAT_CTL_STATE */
    char by[80];       /* "none" or "on-missing-state=pickup (database)" */
};

/* `allow` is a pick-up that lasts for so long. */
#define ARRIVE_FOREVER_S (30u * 24 * 3600)

void arrive_decide(const struct arrive_in *, struct arrive_out *);

/* A host's setting, looked up by its name in the database, then in the host file;
 * block if it is in neither or is no such word.  Values may be NULL. */
enum moat_fail arrive_host_setting(const char *in_database, const char *in_file,
                                   enum arrive_from *from);

/* The settings of a vNIC that neither the database nor another host knows. */
void arrive_orphan(enum moat_fail on_missing_policy, struct moat_settings *);

/* A VM's tap in the kernel, past the firewall: true if its link shall be down. */
bool arrive_tap_down(const char *in_database, const char *in_file);

#endif /* arrive.h */
