-- The machines of a department. %(department_id)s: uuid. Rows: id.
SELECT "id" FROM "Machine"
WHERE "departmentId" = %(department_id)s;
