-- The policies for services without a setting of the machine or department: serviceId, useEnabled, provideEnabled.
SELECT
    "serviceId",
    "useEnabled",
    "provideEnabled"
FROM "GlobalServiceConfig";
