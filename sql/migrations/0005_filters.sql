-- compat: 1
-- Network filters as libvirt's nwfilter understands them. What libvirt would silently change or drop is refused here
-- as far as one row can tell.

CREATE TABLE "NWFilter" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "name" text NOT NULL,
    "internalName" text NOT NULL,
    "uuid" uuid NOT NULL,
    "description" text,
    "chain" text,
    "type" text NOT NULL DEFAULT 'generic',
    "priority" integer NOT NULL DEFAULT 500,
    "stateMatch" boolean NOT NULL DEFAULT TRUE,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "flushedAt" timestamptz (3),
    CONSTRAINT "NWFilter_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "NWFilter_name_key" UNIQUE ("name"),
    CONSTRAINT "NWFilter_internalName_key" UNIQUE ("internalName"),
    CONSTRAINT "NWFilter_uuid_key" UNIQUE ("uuid"),
    CONSTRAINT "NWFilter_chain_known_to_libvirt_check" CHECK (
        "chain" ~ '^(root|(mac|vlan|stp|arp|rarp|ipv4|ipv6)(-.+)?)$'
    ),
    CONSTRAINT "NWFilter_type_generic_department_or_vm_check" CHECK ("type" IN ('generic', 'department', 'vm')),
    CONSTRAINT "NWFilter_priority_within_1000_check" CHECK ("priority" BETWEEN -1000 AND 1000)
);

COMMENT ON TABLE "NWFilter" IS 'A network filter: rules and references to other filters.';
COMMENT ON COLUMN "NWFilter"."id" IS 'Public identifier.';
COMMENT ON COLUMN "NWFilter"."name" IS 'Name for people; unique.';
COMMENT ON COLUMN "NWFilter"."internalName" IS 'Name in libvirt: ibay- and 16 hex digits; unique and never changed.';
COMMENT ON COLUMN "NWFilter"."uuid" IS 'UUID in libvirt; unique and never changed.';
COMMENT ON COLUMN "NWFilter"."description" IS 'What the filter is for.';
COMMENT ON COLUMN "NWFilter"."chain" IS
'Chain of libvirt: root, or mac, vlan, stp, arp, rarp, ipv4, ipv6 with an optional suffix; NULL means root.';
COMMENT ON COLUMN "NWFilter"."type" IS 'Whose it is: generic, department or vm.';
COMMENT ON COLUMN "NWFilter"."priority" IS 'Order among the filters of a chain, -1000 (first) to 1000.';
COMMENT ON COLUMN "NWFilter"."stateMatch" IS 'The platform''s wish for connection tracking; libvirt has it per rule only.';
COMMENT ON COLUMN "NWFilter"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "NWFilter"."updatedAt" IS
'When the row last changed, server time; kept by a trigger, which a change of flushedAt alone does not move.';
COMMENT ON COLUMN "NWFilter"."flushedAt" IS 'When the filter was last applied to libvirt on every host that needs it.';
COMMENT ON CONSTRAINT "NWFilter_chain_known_to_libvirt_check" ON "NWFilter" IS
'A chain is root, or begins with mac, vlan, stp, arp, rarp, ipv4 or ipv6 and goes on with a hyphen.';
COMMENT ON CONSTRAINT "NWFilter_type_generic_department_or_vm_check" ON "NWFilter" IS
'The type of a filter is generic, department or vm.';
COMMENT ON CONSTRAINT "NWFilter_priority_within_1000_check" ON "NWFilter" IS
'The priority of a filter is a number from -1000 to 1000.';

CREATE TABLE "FilterReference" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "sourceFilterId" uuid NOT NULL,
    "targetFilterId" uuid NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "FilterReference_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "FilterReference_sourceFilterId_targetFilterId_key" UNIQUE ("sourceFilterId", "targetFilterId"),
    CONSTRAINT "FilterReference_sourceFilterId_fkey" FOREIGN KEY ("sourceFilterId")
    REFERENCES "NWFilter" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "FilterReference_targetFilterId_fkey" FOREIGN KEY ("targetFilterId")
    REFERENCES "NWFilter" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "FilterReference_not_to_itself_check" CHECK ("sourceFilterId" <> "targetFilterId")
);

CREATE INDEX "FilterReference_targetFilterId_idx" ON "FilterReference" ("targetFilterId");

COMMENT ON TABLE "FilterReference" IS 'One filter that includes another.';
COMMENT ON COLUMN "FilterReference"."id" IS 'Public identifier.';
COMMENT ON COLUMN "FilterReference"."sourceFilterId" IS 'The filter that includes.';
COMMENT ON COLUMN "FilterReference"."targetFilterId" IS 'The filter that is included.';
COMMENT ON COLUMN "FilterReference"."createdAt" IS 'When the row was made, server time.';
COMMENT ON CONSTRAINT "FilterReference_not_to_itself_check" ON "FilterReference" IS
'A filter does not include itself; libvirt refuses loops.';

CREATE TABLE "FWRule" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "nwFilterId" uuid NOT NULL,
    "action" text NOT NULL DEFAULT 'accept',
    "direction" text NOT NULL DEFAULT 'inout',
    "priority" integer NOT NULL,
    "protocol" text NOT NULL DEFAULT 'all',
    "ipVersion" text,
    "srcMacAddr" text,
    "srcIpAddr" text,
    "srcIpMask" text,
    "dstIpAddr" text,
    "dstIpMask" text,
    "srcPortStart" integer,
    "srcPortEnd" integer,
    "dstPortStart" integer,
    "dstPortEnd" integer,
    "state" jsonb,
    "comment" text,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "FWRule_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "FWRule_nwFilterId_fkey" FOREIGN KEY ("nwFilterId")
    REFERENCES "NWFilter" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "FWRule_action_known_to_libvirt_check" CHECK (
        "action" IN ('accept', 'reject', 'drop', 'return', 'continue')
    ),
    CONSTRAINT "FWRule_direction_in_out_or_inout_check" CHECK ("direction" IN ('in', 'out', 'inout')),
    CONSTRAINT "FWRule_priority_within_1000_check" CHECK ("priority" BETWEEN -1000 AND 1000),
    CONSTRAINT "FWRule_protocol_known_to_libvirt_check" CHECK (
        "protocol" IN (
            'mac', 'vlan', 'stp', 'arp', 'rarp', 'ip', 'ipv6',
            'all', 'tcp', 'udp', 'udplite', 'esp', 'ah', 'sctp', 'icmp', 'igmp',
            'all-ipv6', 'tcp-ipv6', 'udp-ipv6', 'udplite-ipv6', 'esp-ipv6', 'ah-ipv6', 'sctp-ipv6', 'icmpv6'
        )
    ),
    CONSTRAINT "FWRule_ipVersion_ipv4_or_ipv6_check" CHECK ("ipVersion" IN ('ipv4', 'ipv6')),
    CONSTRAINT "FWRule_srcPortStart_0_to_65535_check" CHECK ("srcPortStart" BETWEEN 0 AND 65535),
    CONSTRAINT "FWRule_srcPortEnd_0_to_65535_check" CHECK ("srcPortEnd" BETWEEN 0 AND 65535),
    CONSTRAINT "FWRule_srcPortStart_not_above_end_check" CHECK ("srcPortStart" <= "srcPortEnd"),
    CONSTRAINT "FWRule_dstPortStart_0_to_65535_check" CHECK ("dstPortStart" BETWEEN 0 AND 65535),
    CONSTRAINT "FWRule_dstPortEnd_0_to_65535_check" CHECK ("dstPortEnd" BETWEEN 0 AND 65535),
    CONSTRAINT "FWRule_dstPortStart_not_above_end_check" CHECK ("dstPortStart" <= "dstPortEnd"),
    CONSTRAINT "FWRule_state_is_an_object_check" CHECK (jsonb_typeof("state") = 'object')
);

CREATE INDEX "FWRule_nwFilterId_idx" ON "FWRule" ("nwFilterId");

COMMENT ON TABLE "FWRule" IS 'A rule of a filter.';
COMMENT ON COLUMN "FWRule"."id" IS 'Public identifier.';
COMMENT ON COLUMN "FWRule"."nwFilterId" IS 'The filter it belongs to.';
COMMENT ON COLUMN "FWRule"."action" IS 'accept, reject, drop, return or continue.';
COMMENT ON COLUMN "FWRule"."direction" IS 'in, out or inout, as the guest sees it.';
COMMENT ON COLUMN "FWRule"."priority" IS 'Order among the rules, -1000 (first) to 1000.';
COMMENT ON COLUMN "FWRule"."protocol" IS 'A protocol of libvirt''s nwfilter, such as tcp, udp, icmp, ip, mac or all.';
COMMENT ON COLUMN "FWRule"."ipVersion" IS 'ipv4 or ipv6; NULL follows the protocol.';
COMMENT ON COLUMN "FWRule"."srcMacAddr" IS 'Source MAC address, or the variable $MAC.';
COMMENT ON COLUMN "FWRule"."srcIpAddr" IS 'Source IP address, or the variable $IP.';
COMMENT ON COLUMN "FWRule"."srcIpMask" IS 'Mask of the source address: prefix length or dotted.';
COMMENT ON COLUMN "FWRule"."dstIpAddr" IS 'Destination IP address, or a variable.';
COMMENT ON COLUMN "FWRule"."dstIpMask" IS 'Mask of the destination address: prefix length or dotted.';
COMMENT ON COLUMN "FWRule"."srcPortStart" IS 'First source port, 0 to 65535.';
COMMENT ON COLUMN "FWRule"."srcPortEnd" IS 'Last source port, 0 to 65535.';
COMMENT ON COLUMN "FWRule"."dstPortStart" IS 'First destination port, 0 to 65535.';
COMMENT ON COLUMN "FWRule"."dstPortEnd" IS 'Last destination port, 0 to 65535.';
COMMENT ON COLUMN "FWRule"."state" IS 'Object of booleans: new, established, related; NULL means any state.';
COMMENT ON COLUMN "FWRule"."comment" IS 'What the rule is for; libvirt keeps 256 characters.';
COMMENT ON COLUMN "FWRule"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "FWRule"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';
COMMENT ON CONSTRAINT "FWRule_action_known_to_libvirt_check" ON "FWRule" IS
'The action of a rule is accept, reject, drop, return or continue.';
COMMENT ON CONSTRAINT "FWRule_direction_in_out_or_inout_check" ON "FWRule" IS
'The direction of a rule is in, out or inout.';
COMMENT ON CONSTRAINT "FWRule_priority_within_1000_check" ON "FWRule" IS
'The priority of a rule is a number from -1000 to 1000; libvirt would make 500 of anything else.';
COMMENT ON CONSTRAINT "FWRule_protocol_known_to_libvirt_check" ON "FWRule" IS
'The protocol of a rule is one of libvirt''s: mac, vlan, stp, arp, rarp, ip, ipv6, all, tcp, udp, udplite, esp, ah, sctp, icmp, igmp, icmpv6, or one of these with -ipv6; libvirt would drop anything else and the rule would match everything.';
COMMENT ON CONSTRAINT "FWRule_ipVersion_ipv4_or_ipv6_check" ON "FWRule" IS
'The IP version of a rule is ipv4 or ipv6.';
COMMENT ON CONSTRAINT "FWRule_srcPortStart_0_to_65535_check" ON "FWRule" IS
'The first source port is a number from 0 to 65535.';
COMMENT ON CONSTRAINT "FWRule_srcPortEnd_0_to_65535_check" ON "FWRule" IS
'The last source port is a number from 0 to 65535.';
COMMENT ON CONSTRAINT "FWRule_srcPortStart_not_above_end_check" ON "FWRule" IS
'The first source port is not above the last.';
COMMENT ON CONSTRAINT "FWRule_dstPortStart_0_to_65535_check" ON "FWRule" IS
'The first destination port is a number from 0 to 65535.';
COMMENT ON CONSTRAINT "FWRule_dstPortEnd_0_to_65535_check" ON "FWRule" IS
'The last destination port is a number from 0 to 65535.';
COMMENT ON CONSTRAINT "FWRule_dstPortStart_not_above_end_check" ON "FWRule" IS
'The first destination port is not above the last.';
COMMENT ON CONSTRAINT "FWRule_state_is_an_object_check" ON "FWRule" IS
'The state of a rule is an object of booleans, such as {"established": true}.';

CREATE TABLE "DepartmentNWFilter" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "departmentId" uuid NOT NULL,
    "nwFilterId" uuid NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "DepartmentNWFilter_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "DepartmentNWFilter_departmentId_nwFilterId_key" UNIQUE ("departmentId", "nwFilterId"),
    CONSTRAINT "DepartmentNWFilter_departmentId_fkey" FOREIGN KEY ("departmentId")
    REFERENCES "Department" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "DepartmentNWFilter_nwFilterId_fkey" FOREIGN KEY ("nwFilterId")
    REFERENCES "NWFilter" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

CREATE INDEX "DepartmentNWFilter_nwFilterId_idx" ON "DepartmentNWFilter" ("nwFilterId");

COMMENT ON TABLE "DepartmentNWFilter" IS 'A filter that holds for all machines of a department.';
COMMENT ON COLUMN "DepartmentNWFilter"."id" IS 'Public identifier.';
COMMENT ON COLUMN "DepartmentNWFilter"."departmentId" IS 'The department.';
COMMENT ON COLUMN "DepartmentNWFilter"."nwFilterId" IS 'The filter.';
COMMENT ON COLUMN "DepartmentNWFilter"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "DepartmentNWFilter"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';

CREATE TABLE "VMNWFilter" (
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "vmId" uuid NOT NULL,
    "nwFilterId" uuid NOT NULL,
    "createdAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" timestamptz (3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    CONSTRAINT "VMNWFilter_pkey" PRIMARY KEY ("id"),
    CONSTRAINT "VMNWFilter_vmId_nwFilterId_key" UNIQUE ("vmId", "nwFilterId"),
    CONSTRAINT "VMNWFilter_vmId_fkey" FOREIGN KEY ("vmId")
    REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    CONSTRAINT "VMNWFilter_nwFilterId_fkey" FOREIGN KEY ("nwFilterId")
    REFERENCES "NWFilter" ("id") ON DELETE CASCADE ON UPDATE CASCADE
);

CREATE INDEX "VMNWFilter_nwFilterId_idx" ON "VMNWFilter" ("nwFilterId");

COMMENT ON TABLE "VMNWFilter" IS 'A filter that holds for one machine.';
COMMENT ON COLUMN "VMNWFilter"."id" IS 'Public identifier.';
COMMENT ON COLUMN "VMNWFilter"."vmId" IS 'The machine.';
COMMENT ON COLUMN "VMNWFilter"."nwFilterId" IS 'The filter.';
COMMENT ON COLUMN "VMNWFilter"."createdAt" IS 'When the row was made, server time.';
COMMENT ON COLUMN "VMNWFilter"."updatedAt" IS 'When the row last changed, server time; kept by a trigger.';
